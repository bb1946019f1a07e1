{{/* Egress that every client of the API server needs. The API server has no pod label and its address may change. */}}
{{- define "finetune.dnsAndApiServer" -}}
- ports:
    - port: 53
      protocol: UDP
    - port: 53
      protocol: TCP
- ports:
    {{- range .Values.networkPolicy.apiServerPorts }}
    - port: {{ . }}
    {{- end }}
{{- end -}}

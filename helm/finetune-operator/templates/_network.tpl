{{/* Egress for clients of the API server, which has no pod labels and whose address may change. */}}
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

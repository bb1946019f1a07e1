{{/* Stem of all names. A release called finetune gives finetune-operator, finetune-gateway and finetune-redis. */}}
{{- define "finetune.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains "finetune" .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-finetune" .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Labels of every object. Called with (list $ "component"). */}}
{{- define "finetune.labels" -}}
{{- $root := index . 0 -}}
{{ include "finetune.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* Labels that select the pods of a component. Called with (list $ "component"). */}}
{{- define "finetune.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: finetune-operator
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* Reference of an image, by digest if it is set. Called with (list $ .Values.some.image). */}}
{{- define "finetune.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $image.repository ($image.tag | default $root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/* Security context of a pod: Pod Security `restricted`. */}}
{{- define "finetune.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* Security context of a container: Pod Security `restricted`, and a read-only root file system. */}}
{{- define "finetune.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Scheduling of pods. Called with the values of a component. */}}
{{- define "finetune.placement" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* User name of the operator's service account, as admission policies see it. */}}
{{- define "finetune.operatorUser" -}}
system:serviceaccount:{{ .Release.Namespace }}:{{ include "finetune.fullname" . }}-operator
{{- end -}}

{{/* Namespaces that get the broker's Secret, as a YAML list. */}}
{{- define "finetune.brokerNamespaces" -}}
{{- concat (list .Release.Namespace) .Values.watchNamespaces .Values.broker.namespaces | uniq | toYaml -}}
{{- end -}}

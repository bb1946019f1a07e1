{{/* Settings of the operator, documented in operator/src/finetune_operator/settings.py, which also has the defaults of unset ones. */}}
{{- define "finetune.operatorEnv" -}}
- name: FINETUNE_OPERATOR_NAMESPACES
  value: {{ join "," .Values.watchNamespaces | quote }}
- name: FINETUNE_OPERATOR_TRAINER_IMAGE
  value: {{ include "finetune.image" (list . .Values.trainer.image) | quote }}
{{- with .Values.trainer.gpuMemory }}
- name: FINETUNE_OPERATOR_GPU_MEMORY
  value: {{ . | quote }}
{{- end }}
- name: FINETUNE_OPERATOR_INFERENCE_IMAGE
  value: {{ include "finetune.image" (list . .Values.inference.image) | quote }}
{{- if .Values.inference.vllm.image.repository }}
- name: FINETUNE_OPERATOR_INFERENCE_VLLM_IMAGE
  value: {{ include "finetune.image" (list . .Values.inference.vllm.image) | quote }}
{{- end }}
- name: FINETUNE_OPERATOR_LOG_LEVEL
  value: {{ .Values.operator.logLevel | quote }}
- name: FINETUNE_OPERATOR_CLUSTER_DOMAIN
  value: {{ .Values.clusterDomain | quote }}
- name: FINETUNE_OPERATOR_BROKER_SECRET_NAME
  value: {{ .Values.broker.secretName | quote }}
{{- with .Values.workloads }}
- name: FINETUNE_OPERATOR_IMAGE_PULL_POLICY
  value: {{ .imagePullPolicy | quote }}
- name: FINETUNE_OPERATOR_SERVICE_ACCOUNT
  value: {{ .serviceAccount | quote }}
- name: FINETUNE_OPERATOR_ALLOW_PRIVATE_SOURCES
  value: {{ .allowPrivateSources | quote }}
- name: FINETUNE_OPERATOR_SCRATCH_SIZE
  value: {{ .scratchSize | quote }}
- name: FINETUNE_OPERATOR_ADAPTERS_SIZE
  value: {{ .adapters.size | quote }}
- name: FINETUNE_OPERATOR_ADAPTERS_ACCESS_MODE
  value: {{ .adapters.accessMode | quote }}
{{- with .adapters.storageClass }}
- name: FINETUNE_OPERATOR_ADAPTERS_STORAGE_CLASS
  value: {{ . | quote }}
{{- end }}
{{- with .imagePullSecrets }}
- name: FINETUNE_OPERATOR_IMAGE_PULL_SECRETS
  value: {{ toJson . | quote }}
{{- end }}
{{- with .nodeSelector }}
- name: FINETUNE_OPERATOR_NODE_SELECTOR
  value: {{ toJson . | quote }}
{{- end }}
{{- with .tolerations }}
- name: FINETUNE_OPERATOR_TOLERATIONS
  value: {{ toJson . | quote }}
{{- end }}
{{- with .runtimeClassName }}
- name: FINETUNE_OPERATOR_RUNTIME_CLASS_NAME
  value: {{ . | quote }}
{{- end }}
{{- end }}
{{- with .Values.redis.external.urlSecretRef }}
{{- if .name }}
- name: FINETUNE_BROKER_URL
  valueFrom:
    secretKeyRef:
      name: {{ .name }}
      key: {{ .key }}
{{- else if $.Values.redis.enabled }}
- name: FINETUNE_BROKER_URL
  valueFrom:
    secretKeyRef:
      name: {{ include "finetune.fullname" $ }}-redis
      key: operator-url
{{- end }}
{{- end }}
{{- range $name, $value := .Values.operator.env }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end -}}

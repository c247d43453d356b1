{{- define "twolane.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "twolane.operator" -}}
{{ include "twolane.name" . }}-operator
{{- end }}

{{- define "twolane.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}{{ .Values.serviceAccount.name | default (include "twolane.operator" .) }}{{ else }}{{ required "serviceAccount.name must name an existing account when serviceAccount.create is false" .Values.serviceAccount.name }}{{ end }}
{{- end }}

{{- /* Image of what the operator starts. */ -}}
{{- define "twolane.image" -}}
{{- if .Values.image.registry }}{{ .Values.image.registry }}/{{ end }}{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "twolane.operatorImage" -}}
{{- $tag := .Values.image.operatorTag | default .Values.image.tag | default (printf "%s-control" .Chart.AppVersion) }}
{{- if .Values.image.registry }}{{ .Values.image.registry }}/{{ end }}{{ .Values.image.repository }}:{{ $tag }}
{{- end }}

{{- define "twolane.redis" -}}
{{ include "twolane.name" . }}-redis
{{- end }}

{{- define "twolane.redisSecret" -}}
{{ .Values.redis.secretName | default (include "twolane.redis" .) }}
{{- end }}

{{- define "twolane.redisSelector" -}}
app.kubernetes.io/name: twolane-redis
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- /* Whether the operator replaces older definitions. */ -}}
{{- define "twolane.upgradesDefinitions" -}}
{{- if and .Values.crds.upgrade (not .Values.watchNamespaces) }}yes{{ end }}
{{- end }}

{{- define "twolane.selector" -}}
app.kubernetes.io/name: twolane-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "twolane.labels" -}}
{{ include "twolane.selector" . }}
{{ include "twolane.release" . }}
{{- end }}

{{- define "twolane.release" -}}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- /* What the operator may do where it works. Unless it is to sign it reads no Secrets: pods name them, kubelets
read them. */ -}}
{{- define "twolane.rules" -}}
- apiGroups: [serving.twolane.dev]
  resources: [modeldeployments]
  verbs: [get, list, watch, patch]
- apiGroups: [serving.twolane.dev]
  resources: [modeldeployments/status, workerpools/status]
  verbs: [patch]
# Owner references that block deletion need it.
- apiGroups: [serving.twolane.dev]
  resources: [modeldeployments/finalizers]
  verbs: [update]
- apiGroups: [serving.twolane.dev]
  resources: [workerpools]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [apps]
  resources: [deployments, statefulsets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [services]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies, ingresses]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [gateway.networking.k8s.io]
  resources: [httproutes]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: [get, list, watch, create, patch, delete]
# A rank that did not notice the end of another is deleted with all others of its worker.
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, delete]
- apiGroups: [""]
  resources: [events]
  verbs: [create, patch]
{{- if .Values.tls.secrets }}
# No list and no watch: names must be known.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, create, patch, delete]
{{- end }}
{{- if .Values.tls.certManager }}
- apiGroups: [cert-manager.io]
  resources: [certificates]
  verbs: [get, create, patch, delete]
{{- end }}
{{- end }}

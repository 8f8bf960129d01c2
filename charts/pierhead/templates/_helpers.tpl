{{- define "pierhead.name" -}}
{{- printf "%s-operator" .Release.Name | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "pierhead.selectorLabels" -}}
app.kubernetes.io/name: pierhead-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "pierhead.labels" -}}
{{ include "pierhead.selectorLabels" . }}
app.kubernetes.io/part-of: pierhead
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* What the operator may do in the namespaces that it looks after: what it does, and no more. */}}
{{- define "pierhead.rules" -}}
- apiGroups: [pierhead.dev]
  resources: [models, endpoints, deployedmodels]
  verbs: [get, list, watch]
- apiGroups: [pierhead.dev]
  resources: [models/status, endpoints/status, deployedmodels/status]
  verbs: [patch]
# Owner references that hold their owner's deletion back need the right to finalize it.
- apiGroups: [pierhead.dev]
  resources: [models/finalizers, endpoints/finalizers, deployedmodels/finalizers]
  verbs: [update]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [services]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: [get, list, watch, create, patch, delete]
{{- if eq .Values.routing.provider "gateway-api" }}
- apiGroups: [gateway.networking.k8s.io]
  resources: [httproutes]
  verbs: [get, list, watch, create, patch, delete]
{{- end }}
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create]
{{- end }}

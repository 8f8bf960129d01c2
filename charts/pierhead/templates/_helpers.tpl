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

{{/* Whether the CRDs are of this release: so it was before there was a value, which `helm upgrade --reuse-values` leaves out. */}}
{{- define "pierhead.hasCrds" -}}
{{- if ne (toString (.Values.crds).enabled) "false" }}true{{ end }}
{{- end }}

{{/* The image of `operator` or `server`. There is no default: a name that nobody owns would be anybody's to publish. */}}
{{- define "pierhead.image" -}}
{{- $root := index . 0 }}
{{- get (get $root.Values (index . 1)) "image" | required (include "pierhead.imagesMissing" $root) }}
{{- end }}

{{- define "pierhead.imagesMissing" -}}
{{- $operator := printf "registry.example.com/pierhead/operator:%s" .Chart.AppVersion }}
{{- $server := printf "registry.example.com/pierhead/server:%s" .Chart.AppVersion -}}
operator.image and server.image must be set: nobody publishes Pierhead's images.
Build both from its repository, push them to where the cluster pulls from, and name them:

  docker build -f Dockerfile.operator -t {{ $operator }} .
  docker build -f Dockerfile.server -t {{ $server }} .
  docker push {{ $operator }}
  docker push {{ $server }}

  --set operator.image={{ $operator }} --set server.image={{ $server }}
{{- end }}

{{/* Where the pods of a Deployment run, and with what they are pulled: `values` are the Deployment's, `selectorLabels` its pods'. */}}
{{- define "pierhead.podPlacement" -}}
{{- with .imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 0 }}
{{- end }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations: {{- toYaml . | nindent 0 }}
{{- end }}
{{- with .values.topologySpreadConstraints }}
topologySpreadConstraints: {{- toYaml . | nindent 0 }}
{{- end }}
{{- with .values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- else }}
# A second one on the same node would go with the first.
affinity:
  podAntiAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
    - weight: 100
      podAffinityTerm:
        topologyKey: kubernetes.io/hostname
        labelSelector:
          matchLabels: {{- .selectorLabels | nindent 12 }}
{{- end }}
{{- end }}

{{/* What the pod security standard `restricted` asks of a pod. The user is the image's, 65532, or the cluster's choice. */}}
{{- define "pierhead.podSecurityContext" -}}
runAsNonRoot: true
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* The same of a container; nothing writes into its image. */}}
{{- define "pierhead.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* What the operator may do in the namespaces that it looks after: what it does, and no more. */}}
{{- define "pierhead.rules" -}}
- apiGroups: [pierhead.dev]
  resources: [models, endpoints, deployedmodels, batchpredictionjobs]
  verbs: [list, watch]
# Jobs that are to be gone some time after their end, and what deployments of the REST API left that failed.
- apiGroups: [pierhead.dev]
  resources: [batchpredictionjobs, deployedmodels]
  verbs: [delete]
- apiGroups: [pierhead.dev]
  resources: [models/status, endpoints/status, deployedmodels/status, batchpredictionjobs/status]
  verbs: [patch]
# Owner references that hold their owner's deletion back need the right to finalize it.
- apiGroups: [pierhead.dev]
  resources: [models/finalizers, endpoints/finalizers, deployedmodels/finalizers, batchpredictionjobs/finalizers]
  verbs: [update]
# Nothing asks for `get` any more but the operator of 0.1.0, which acts until its successor is there.
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [services]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
{{- if (.Values.networkPolicy).enabled }}
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [list, watch, create, patch, delete]
{{- end }}
{{- if eq .Values.routing.provider "gateway-api" }}
- apiGroups: [gateway.networking.k8s.io]
  resources: [httproutes]
  verbs: [get, list, watch, create, patch, delete]
{{- if .Values.routing.envoyGateway }}
- apiGroups: [gateway.envoyproxy.io]
  resources: [backendtrafficpolicies]
  verbs: [get, list, watch, create, patch, delete]
{{- end }}
{{- end }}
{{- if eq .Values.routing.provider "istio" }}
- apiGroups: [networking.istio.io]
  resources: [virtualservices, destinationrules]
  verbs: [get, list, watch, create, patch, delete]
{{- end }}
# What an installation with other settings left is taken away.
{{- if not (.Values.networkPolicy).enabled }}
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [list, delete]
{{- end }}
{{- if ne .Values.routing.provider "gateway-api" }}
- apiGroups: [gateway.networking.k8s.io]
  resources: [httproutes]
  verbs: [list, delete]
{{- end }}
{{- if not (and (eq .Values.routing.provider "gateway-api") .Values.routing.envoyGateway) }}
- apiGroups: [gateway.envoyproxy.io]
  resources: [backendtrafficpolicies]
  verbs: [list, delete]
{{- end }}
{{- if ne .Values.routing.provider "istio" }}
- apiGroups: [networking.istio.io]
  resources: [virtualservices, destinationrules]
  verbs: [list, delete]
{{- end }}
# Changed are the annotations in which Kubernetes counts a batch worker's failures, and nothing else.
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch, patch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create]
{{- end }}

{{/* What the operators of a release need to agree on which of them acts. */}}
{{- define "pierhead.leaseRules" -}}
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  resourceNames: [{{ include "pierhead.name" . }}]
  verbs: [get, update]
# What is being created has no name yet that a rule could ask for.
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [create]
{{- end }}

{{/* Of the release's own pods those with these labels, as a list of NetworkPolicyPeers. */}}
{{- define "pierhead.ownPeers" -}}
{{- $namespace := dict "matchLabels" (dict "kubernetes.io/metadata.name" (index . 0).Release.Namespace) }}
{{- $pods := dict "matchLabels" (index . 1 | fromYaml) }}
{{- list (dict "namespaceSelector" $namespace "podSelector" $pods) | toJson }}
{{- end }}

{{- define "pierhead.apiName" -}}
{{- printf "%s-api" .Release.Name | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "pierhead.apiSelectorLabels" -}}
app.kubernetes.io/name: pierhead-api
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "pierhead.apiLabels" -}}
{{ include "pierhead.apiSelectorLabels" . }}
app.kubernetes.io/part-of: pierhead
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "pierhead.managementName" -}}
{{- printf "%s-management" (include "pierhead.apiName" . | trunc 52 | trimSuffix "-") }}
{{- end }}

{{- define "pierhead.managementSelectorLabels" -}}
app.kubernetes.io/name: pierhead-api-management
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "pierhead.managementLabels" -}}
{{ include "pierhead.managementSelectorLabels" . }}
app.kubernetes.io/part-of: pierhead
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* The pods of one part of the API: `part` is what its name and its labels begin with, `serves` what it answers. */}}
{{- define "pierhead.apiWorkload" -}}
{{- $root := .root }}
{{- $name := include (printf "pierhead.%sName" .part) $root }}
{{- $labels := include (printf "pierhead.%sLabels" .part) $root }}
{{- $selectorLabels := include (printf "pierhead.%sSelectorLabels" .part) $root }}
{{- $replicas := int .replicas }}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ $name }}
  namespace: {{ $root.Release.Namespace }}
  labels: {{- $labels | nindent 4 }}
spec:
  replicas: {{ $replicas }}
  strategy:
    type: RollingUpdate
    rollingUpdate: {maxSurge: 1, maxUnavailable: 0}
  selector:
    matchLabels: {{- $selectorLabels | nindent 6 }}
  template:
    metadata:
      labels: {{- $labels | nindent 8 }}
      annotations:
        checksum/config: {{ include (print $root.Template.BasePath "/api-config.yaml") $root | sha256sum }}
    spec:
      serviceAccountName: {{ include "pierhead.apiName" $root }}
      securityContext: {{- include "pierhead.podSecurityContext" $root | nindent 8 }}
      {{- include "pierhead.podPlacement" (dict "values" $root.Values.api "imagePullSecrets" $root.Values.imagePullSecrets "selectorLabels" $selectorLabels) | trim | nindent 6 }}
      # Longer than it takes to drain and to finish what it answers or forwards.
      terminationGracePeriodSeconds: 75
      containers:
      - name: {{ .container }}
        image: {{ include "pierhead.image" (list $root "operator") | quote }}
        imagePullPolicy: {{ $root.Values.operator.imagePullPolicy }}
        command: [/opt/pierhead/bin/python, -m, pierhead_api]
        args: [--config, /etc/pierhead/api.yaml, --serve, {{ .serves }}]
        ports:
        - {name: http, containerPort: 8080}
        startupProbe:
          httpGet: {path: /healthz, port: http}
          periodSeconds: 1
          failureThreshold: 60
        readinessProbe:
          httpGet: {path: /readyz, port: http}
          periodSeconds: 2
        livenessProbe:
          httpGet: {path: /healthz, port: http}
          periodSeconds: 20
          timeoutSeconds: 5
        resources: {{- toYaml .resources | nindent 10 }}
        securityContext: {{- include "pierhead.containerSecurityContext" $root | nindent 10 }}
        volumeMounts:
        - {name: config, mountPath: /etc/pierhead, readOnly: true}
      volumes:
      - name: config
        configMap: {name: {{ include "pierhead.apiName" $root }}}
{{- if gt $replicas 1 }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ $name }}
  namespace: {{ $root.Release.Namespace }}
  labels: {{- $labels | nindent 4 }}
spec:
  maxUnavailable: 1
  selector:
    matchLabels: {{- $selectorLabels | nindent 6 }}
{{- end }}
{{- end }}

{{/* Predictions are open to whoever reaches the gateway only where that is written. */}}
{{- define "pierhead.checkAuthorization" -}}
{{- $open := "To let whoever reaches the gateway predict, write api.authorization: none." }}
{{- $asks := and (ne .Values.routing.provider "none") (eq .Values.api.authorization "gateway") }}
{{- if and $asks (not .Values.api.enabled) }}
{{- fail (printf "api.authorization: gateway has the gateway ask the API, which api.enabled: false leaves out. %s" $open) }}
{{- end }}
{{- if and $asks (eq .Values.routing.provider "gateway-api") (not .Values.routing.envoyGateway) }}
{{- fail (printf "api.authorization: gateway needs a Gateway that asks the API about each prediction: Envoy Gateway, with routing.envoyGateway: true. %s" $open) }}
{{- end }}
{{- $istio := .Values.api.istioAuthorization | default dict }}
{{- if and $asks (eq .Values.routing.provider "istio") (not (and $istio.provider $istio.namespace $istio.selector)) }}
{{- fail (printf "api.authorization: gateway needs provider, namespace and selector in api.istioAuthorization, by which Istio asks the API about each prediction. %s" $open) }}
{{- end }}
{{- end }}

{{/* That of tokens for predictions alone: to review tokens is a right in the cluster, which an installation of some namespaces has not. */}}
{{- define "pierhead.audience" -}}
{{- if not .Values.watchNamespaces }}{{ .Values.api.audience | default "" }}{{ end }}
{{- end }}

{{/* A project that is mapped to a namespace must not have another one's name: which of them a path means, nobody could say. */}}
{{- define "pierhead.checkProjects" -}}
{{- range $project, $namespace := .Values.api.projects }}
{{- if ne (toString $project) $namespace }}
{{- $known := has (toString $project) ($.Values.watchNamespaces | default list) }}
{{- /* Who may do nothing in the cluster may not look, and need not: other namespaces are not looked after. */}}
{{- if not $.Values.watchNamespaces }}{{ $known = lookup "v1" "Namespace" "" (toString $project) }}{{ end }}
{{- if $known }}
{{- fail (printf "api.projects maps the project %s to the namespace %s, and there is a namespace %s: give the project another id" $project $namespace $project) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* A Gateway, as a route's parent. */}}
{{- define "pierhead.parentRef" -}}
{group: gateway.networking.k8s.io, kind: Gateway, namespace: {{ .namespace }}, name: {{ .name }}{{ with .sectionName }}, sectionName: {{ . }}{{ end }}}
{{- end }}

{{/* The port of the API's Service: `helm upgrade --reuse-values` from a release that had no value for it leaves it out. */}}
{{- define "pierhead.apiPort" -}}
{{- (.Values.api.service).port | default 80 }}
{{- end }}

{{/* The paths of the API that are for clients. The others, such as its metrics, are for the cluster alone. */}}
{{- define "pierhead.apiPaths" -}}
["/v1/projects", "/v1beta1/projects", "/ui/projects"]
{{- end }}

{{/* The hosts of the API's Ingress that TLS is for. */}}
{{- define "pierhead.tlsHosts" -}}
{{- $hosts := list }}
{{- range (.Values.api.ingress).tls }}
{{- $hosts = concat $hosts (.hosts | default list) }}
{{- end }}
{{- toJson $hosts }}
{{- end }}

{{/* Refuses what would have callers' tokens read on the way, unless that is meant. */}}
{{- define "pierhead.checkPlainHttp" -}}
{{- if and .Values.api.anonymous (or (ne ((.Values.api.service).type | default "ClusterIP") "ClusterIP") (.Values.api.ingress).enabled) }}
{{- fail "api.anonymous is for a laptop: with api.service.type or api.ingress everybody who reaches the address would act as that ServiceAccount. Leave one of them out" }}
{{- end }}
{{- if not .Values.api.plainHttp }}
{{- $type := (.Values.api.service).type | default "ClusterIP" }}
{{- $why := "would carry callers' tokens in plain HTTP" }}
{{- if ne $type "ClusterIP" }}
{{- fail (printf "api.service.type: %s %s: use api.ingress with tls, or a gateway (routing.provider), or set api.plainHttp=true where a load balancer ends TLS or the network is trusted" $type $why) }}
{{- end }}
{{- if (.Values.api.ingress).enabled }}
{{- range .Values.api.ingress.hosts }}
{{- if not (has . (include "pierhead.tlsHosts" $ | fromJsonArray)) }}
{{- fail (printf "api.ingress.tls: no entry names the host %s, whose Ingress %s: add one, or set api.plainHttp=true where the Ingress controller ends TLS without it or the network is trusted" . $why) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* Where clients find the API, for a shell: beside whoever forwards port 8080 where it is not reached from outside. */}}
{{- define "pierhead.apiUrl" -}}
{{- $type := (.Values.api.service).type | default "ClusterIP" }}
{{- $port := include "pierhead.apiPort" . }}
{{- $look := printf "kubectl get service %s --namespace %s --output" (include "pierhead.apiName" .) .Release.Namespace }}
{{- if (.Values.api.ingress).enabled }}
{{- $host := first .Values.api.ingress.hosts }}
{{- printf "%s://%s" (ternary "https" "http" (has $host (include "pierhead.tlsHosts" . | fromJsonArray))) $host }}
{{- else if eq $type "LoadBalancer" }}
{{- printf "%s://$(%s jsonpath=\"{.status.loadBalancer.ingress[0]['ip','hostname']}\"):%s" (ternary "https" "http" (eq $port "443")) $look $port }}
{{- else if eq $type "NodePort" }}
{{- printf "http://$(kubectl get nodes --output jsonpath=\"{.items[0].status.addresses[?(@.type=='InternalIP')].address}\"):$(%s jsonpath=\"{.spec.ports[0].nodePort}\")" $look }}
{{- else }}
{{- print "http://localhost:8080" }}
{{- end }}
{{- end }}

{{/* What the API may do itself: see who serves what. All else it does with the caller's own token. */}}
{{- define "pierhead.apiRules" -}}
- apiGroups: [pierhead.dev]
  resources: [endpoints, deployedmodels, models]
  verbs: [list, watch]
{{- end }}

{{- define "pierhead.monitoringName" -}}
{{- $suffix := index . 1 }}
{{- printf "%s-%s" ((index . 0).Release.Name | trunc (int (sub 62 (len $suffix))) | trimSuffix "-") $suffix }}
{{- end }}

{{/* Labels by which the platform's Prometheus chooses what it takes, beside the release's own. */}}
{{- define "pierhead.monitoringLabels" -}}
{{- $own := dict
  "app.kubernetes.io/instance" .Release.Name
  "app.kubernetes.io/part-of" "pierhead"
  "app.kubernetes.io/version" .Chart.AppVersion
  "app.kubernetes.io/managed-by" .Release.Service
  "helm.sh/chart" (printf "%s-%s" .Chart.Name .Chart.Version) }}
{{- toYaml (merge $own ((.Values.monitoring).labels | default dict)) }}
{{- end }}

{{/* Serving pods and batch workers are in the namespaces that the operator looks after. */}}
{{- define "pierhead.monitoredNamespaces" -}}
namespaceSelector:
{{- with .Values.watchNamespaces }}
  matchNames: {{- toYaml . | nindent 4 }}
{{- else }}
  any: true
{{- end }}
{{- end }}

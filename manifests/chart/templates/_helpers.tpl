{{- /* labels are those of every object: the base's, and Helm's. */}}
{{- define "meshpulse.labels" -}}
app.kubernetes.io/part-of: meshpulse
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "meshpulse.port" -}}
{{- .Values.port | default (ternary 4443 10250 .Values.hostNetwork) -}}
{{- end }}

{{- define "meshpulse.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ with .Values.image.digest }}@{{ . }}{{ end }}
{{- end }}

{{- /* serverName is what the API server checks the certificate for. */}}
{{- define "meshpulse.serverName" -}}
meshpulse.{{ .Release.Namespace }}.svc
{{- end }}

{{- /* fallback is the other adapter, NAMESPACE/SERVICE. */}}
{{- define "meshpulse.fallback" -}}
{{ first (splitList ":" .Values.fallback.service) }}
{{- end }}

{{- /* owner is the Service behind an APIService, NAMESPACE/NAME. */}}
{{- define "meshpulse.owner" -}}
{{ dig "spec" "service" "namespace" "" . }}/{{ dig "spec" "service" "name" "" . }}
{{- end }}

{{- /* refuseForeign refuses where an API is neither nobody's nor ours nor the fallback's. */}}
{{- define "meshpulse.refuseForeign" -}}
{{- $ours := printf "%s/meshpulse" .Release.Namespace }}
{{- $other := include "meshpulse.fallback" . }}
{{- if eq $other $ours }}
{{- fail (printf "fallback.service %s is meshpulse's own Service: give the other adapter's" $other) }}
{{- end }}
{{- $api := lookup "apiregistration.k8s.io/v1" "APIService" "" "v1beta1.external.metrics.k8s.io" }}
{{- if and .Values.apiService.enabled $api (not (has (include "meshpulse.owner" $api) (list $ours $other))) }}
{{- fail (printf "external.metrics.k8s.io is served by %s, and only one adapter of a cluster can have it: uninstall that one first, set fallback.service to have it asked for what is not meshpulse's, or apiService.enabled=false" (include "meshpulse.owner" $api)) }}
{{- end }}
{{- if and .Values.customMetrics.enabled .Values.apiService.enabled }}
{{- range (lookup "apiregistration.k8s.io/v1" "APIService" "" "").items | default list }}
{{- if and (eq .spec.group "custom.metrics.k8s.io") (not (has (include "meshpulse.owner" .) (list $ours $other))) }}
{{- fail (printf "custom.metrics.k8s.io is served by %s (%s), and only one adapter of a cluster can have it: uninstall that one first, or leave customMetrics.enabled out" (include "meshpulse.owner" .) .metadata.name) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- /* keepsOffKEDA refuses while KEDA's operator writes the authority of its own certificates into the APIService. */}}
{{- define "meshpulse.keepsOffKEDA" -}}
{{- range (lookup "apps/v1" "Deployment" "" "").items | default list }}
{{- $name := printf "%s/%s" .metadata.namespace .metadata.name }}
{{- range dig "spec" "template" "spec" "containers" (list) . }}
{{- $args := join " " (.args | default list) }}
{{- if and (contains "--enable-cert-rotation" $args) (not (contains "--enable-cert-rotation=false" $args)) (not (contains "--enable-apiservice-patching=false" $args)) }}
{{- fail (printf "KEDA's operator (%s) writes its own caBundle into the APIService, and would take it back: give it --enable-apiservice-patching=false; a release without that flag --enable-cert-rotation=false and certificates of your own" $name) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- /* several is "yes" where there are two replicas. */}}
{{- define "meshpulse.several" -}}
{{ if gt (int .Values.replicas) 1 }}yes{{ end }}
{{- end }}

{{- /* selector is meshpulse's pods': of several replicas not the last Deployment's, which relay nothing. */}}
{{- define "meshpulse.selector" -}}
app.kubernetes.io/name: meshpulse
{{- if include "meshpulse.several" . }}
app.kubernetes.io/component: replica
{{- end }}
{{- end }}

{{- /* subject is meshpulse's account, for bindings. */}}
{{- define "meshpulse.subject" -}}
- kind: ServiceAccount
  name: meshpulse
  namespace: {{ .Release.Namespace }}
{{- end }}

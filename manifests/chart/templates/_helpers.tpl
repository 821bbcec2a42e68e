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

{{- /* subject is meshpulse's account, for bindings. */}}
{{- define "meshpulse.subject" -}}
- kind: ServiceAccount
  name: meshpulse
  namespace: {{ .Release.Namespace }}
{{- end }}

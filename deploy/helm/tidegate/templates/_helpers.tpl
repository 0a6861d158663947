{{/* The name of everything in this release. */}}
{{- define "tidegate.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "tidegate.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "tidegate.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "tidegate.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "tidegate.secret" -}}
{{- if .Values.tls.secretName -}}
{{- .Values.tls.secretName -}}
{{- else if .Values.tls.issuerRef -}}
{{- printf "%s-tls" (include "tidegate.fullname" .) -}}
{{- end -}}
{{- end -}}

{{/* For every container: the restricted pod security standard, and a read-only root. */}}
{{- define "tidegate.confined" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "tidegate.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{/* tidegate.yaml. */}}
{{- define "tidegate.config" -}}
{{- $config := deepCopy .Values.config -}}
{{- range $field := list "listen" "store" "state" "zones" -}}
{{- if hasKey $config $field -}}
{{- fail (printf "config.%s: the chart sets it; see values.yaml" $field) -}}
{{- end -}}
{{- end -}}
{{- $listen := dict "xds" "[::]:18000" "admin" "[::]:18001" "advertise_name" .Values.advertiseName -}}
{{- if include "tidegate.secret" . -}}
{{- $tls := dict "cert" "/etc/tidegate-tls/tls.crt" "key" "/etc/tidegate-tls/tls.key" "client_ca" "/etc/tidegate-tls/ca.crt" -}}
{{- with .Values.tls.guestCa -}}
{{- $_ := set $tls "guest_ca" (printf "/etc/tidegate-tls/%s" .) -}}
{{- end -}}
{{- $_ := set $listen "tls" $tls -}}
{{- else -}}
{{- if not .Values.tls.acceptPlaintext -}}
{{- fail "tls: name a secret (tls.secretName) or an issuer of cert-manager (tls.issuerRef); or accept plain text for a trial (tls.acceptPlaintext)" -}}
{{- end -}}
{{- $_ := set $listen "plaintext" (list "xds" "admin") -}}
{{- $_ := unset $listen "advertise_name" -}}
{{- end -}}
{{- $endpoints := .Values.etcd.endpoints -}}
{{- if .Values.etcd.trial.enabled -}}
{{- $endpoints = list -}}
{{- $etcd := printf "%s-etcd" (include "tidegate.fullname" .) -}}
{{- range $at := until 3 -}}
{{- $endpoints = append $endpoints (printf "http://%s-%d.%s.%s.svc:2379" $etcd $at $etcd $.Release.Namespace) -}}
{{- end -}}
{{- end -}}
{{- if not $endpoints -}}
{{- fail "etcd.endpoints: name the members of etcd, or set etcd.trial.enabled" -}}
{{- end -}}
{{- $_ := set $config "listen" $listen -}}
{{- $_ := set $config "store" (dict "etcd" (dict "endpoints" $endpoints)) -}}
{{- $_ := set $config "state" (dict "path" "/var/lib/tidegate/last-good") -}}
{{- $zones := list -}}
{{- range .Values.zones -}}
{{- $zones = append $zones (dict "name" .name "region" .region) -}}
{{- end -}}
{{- $_ := set $config "zones" $zones -}}
{{- toYaml $config -}}
{{- end -}}

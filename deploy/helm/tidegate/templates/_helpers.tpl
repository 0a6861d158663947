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
{{- $etcd := dict "endpoints" $endpoints -}}
{{- with .Values.etcd.tls -}}
{{- if .secretName -}}
{{- if $.Values.etcd.trial.enabled -}}
{{- fail "etcd.tls: the etcd of etcd.trial speaks plain text" -}}
{{- end -}}
{{- $tls := dict "ca" "/etc/tidegate-etcd/ca.crt" -}}
{{- if .clientCertificate -}}
{{- $_ := set $tls "cert" "/etc/tidegate-etcd/tls.crt" -}}
{{- $_ := set $tls "key" "/etc/tidegate-etcd/tls.key" -}}
{{- end -}}
{{- with .serverName -}}
{{- $_ := set $tls "server_name" . -}}
{{- end -}}
{{- $_ := set $etcd "tls" $tls -}}
{{- end -}}
{{- end -}}
{{- with .Values.etcd.user -}}
{{- if .name -}}
{{- $file := printf "/etc/tidegate-etcd-user/%s" .key -}}
{{- $_ := set $etcd "user" (dict "name" .name "password_file" $file) -}}
{{- end -}}
{{- end -}}
{{- $scheme := ternary "https://" "http://" (hasKey $etcd "tls") -}}
{{- range $endpoints -}}
{{- if not (hasPrefix $scheme .) -}}
{{- fail (printf "etcd.endpoints: %s: write %s, as etcd.tls.secretName says" . $scheme) -}}
{{- end -}}
{{- end -}}
{{- if ne (empty .Values.etcd.user.name) (empty .Values.etcd.user.secretName) -}}
{{- fail "etcd.user: set both, name and secretName, or none" -}}
{{- end -}}
{{- $_ := set $config "store" (dict "etcd" $etcd) -}}
{{- $_ := set $config "state" (dict "path" "/var/lib/tidegate/last-good") -}}
{{- $zones := list -}}
{{- range .Values.zones -}}
{{- $zones = append $zones (dict "name" .name "region" .region) -}}
{{- end -}}
{{- $_ := set $config "zones" $zones -}}
{{- toYaml $config -}}
{{- end -}}

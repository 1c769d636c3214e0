{{- define "s3-proxy.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "s3-proxy.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "s3-proxy.labels" -}}
{{ include "s3-proxy.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "s3-proxy.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "s3-proxy.name" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{/* The configuration file: what the values have, and what the other templates rely on. */}}
{{- define "s3-proxy.config" -}}
{{- if not .Values.config.buckets -}}
{{- fail "config.buckets is empty: name at least one bucket, see values.yaml" -}}
{{- end -}}
{{- /* A ConfigMap is no place for a secret. The message does not repeat it. */ -}}
{{- range $index, $bucket := .Values.config.buckets -}}
{{- range $section := prepend (default list $bucket.clients) $bucket -}}
{{- range $key := list "access_key" "secret_key" "session_token" -}}
{{- if hasKey $section $key -}}
{{- if not (regexMatch "^\\$\\{[A-Za-z_][A-Za-z0-9_]*\\}$" (toString (get $section $key))) -}}
{{- fail (printf "config.buckets[%d]: %s is a plain value: write ${NAME}, and put NAME into the Secret that secretName names" $index $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $token := dig "admin" "token" "" .Values.config -}}
{{- if and $token (not (regexMatch "^\\$\\{[A-Za-z_][A-Za-z0-9_]*\\}$" (toString $token))) -}}
{{- fail "config.admin: token is a plain value: write ${NAME}, and put NAME into the Secret that secretName names" -}}
{{- end -}}
{{- $fixed := dict
    "server" (dict "address" "0.0.0.0:8080")
    "metrics" (dict "address" "0.0.0.0:9090")
    "admin" (dict "address" "127.0.0.1:9091")
    "cache" (dict "disk" (dict "path" "/var/cache/s3-proxy")) -}}
{{- if .Values.tls.secretName -}}
{{- $_ := set $fixed.server "tls" (dict
    "address" "0.0.0.0:8443"
    "certificate" "/etc/s3-proxy-tls/tls.crt"
    "key" "/etc/s3-proxy-tls/tls.key") -}}
{{- end -}}
{{- toYaml (mergeOverwrite (deepCopy .Values.config) $fixed) -}}
{{- end -}}

{{/*
Everything that becomes a variable, a volume or a mount. Settings stand in the pod template rather than in a ConfigMap,
so that a change rolls the pods, a roll-back brings the old values back, and no pod restarts into settings meant for the
next revision.
*/}}

{{/* Helm reads every number as a float: 134217728 would come out as 1.34217728e+08. */}}
{{- define "convoy.value" -}}
{{- if or (kindIs "map" .) (kindIs "slice" .) }}
{{- toJson . }}
{{- else if and (kindIs "float64" .) (eq (float64 (int64 .)) .) }}
{{- int64 . }}
{{- else }}
{{- . }}
{{- end }}
{{- end }}

{{- define "convoy.apiKeySecretName" -}}
{{- .Values.apiKey.existingSecret | default (printf "%s-api-key" (include "convoy.fullname" .)) }}
{{- end }}

{{- define "convoy.saslSecretName" -}}
{{- .Values.kafka.sasl.existingSecret | default (printf "%s-kafka" (include "convoy.fullname" .)) }}
{{- end }}

{{/* The name of a variable as the service reads it, from "group.name". */}}
{{- define "convoy.variable" -}}
{{- printf "CONVOY_%s" (. | replace "." "__" | upper) }}
{{- end }}

{{/*
Variables of a container, from dict "root" $ "api" (whether it talks to the API) "saslSecret" NAME "static" (whether it
is a member of the group under its pod's name).
*/}}
{{- define "convoy.env" -}}
{{- $values := .root.Values }}
{{- $files := include "convoy.files" . | fromYaml }}
{{- $secrets := dict }}
{{- $oauth := eq (include "convoy.kafkaOauth" .root) "true" }}
{{- with $values.kafka.sasl }}
{{- if or .existingSecret .password }}
{{- $_ := set $secrets ($oauth | ternary "kafka.sasl_oauth_client_secret" "kafka.sasl_password") (dict "name" $.saslSecret "key" .passwordKey) }}
{{- end }}
{{- if .usernameKey }}
{{- $_ := set $secrets ($oauth | ternary "kafka.sasl_oauth_client_id" "kafka.sasl_username") (dict "name" $.saslSecret "key" .usernameKey) }}
{{- end }}
{{- end }}
{{- with $values.kafka.clientCertificate }}
{{- if and .secret .passwordKey }}
{{- $_ := set $secrets "kafka.ssl_key_password" (dict "name" .secret "key" .passwordKey) }}
{{- end }}
{{- end }}
{{- $secretSettings := .root.Files.Get "files/secrets.yaml" | fromYamlArray }}
{{- $given := dict }}
{{- range $group, $settings := $values.config }}
{{- range $name, $value := $settings }}
{{- $setting := printf "%s.%s" $group $name }}
{{- if has $setting $secretSettings }}
{{- fail (printf "config.%s is a secret and would be readable in the %s: use apiKey, kafka.sasl, kafka.clientCertificate, or extraEnv with a secretKeyRef" $setting $values.kind) }}
{{- end }}
{{- if not (kindIs "invalid" $value) }}
{{- if or (hasKey $files $setting) (hasKey $secrets $setting) }}
{{- fail (printf "config.%s is set, and the chart sets it too, from apiKey, apiCa or kafka: give one of them" $setting) }}
{{- end }}
{{- if or $.api (ne $setting "api.key_file") }}
{{- $_ := set $given $setting $value }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- range $setting, $value := $given }}
- name: {{ include "convoy.variable" $setting }}
  value: {{ include "convoy.value" $value | quote }}
{{- end }}
{{- range $setting, $file := $files }}
- name: {{ include "convoy.variable" $setting }}
  value: {{ $file.path }}
{{- end }}
{{- range $setting, $reference := $secrets }}
- name: {{ include "convoy.variable" $setting }}
  valueFrom:
    secretKeyRef:
      {{- toYaml $reference | nindent 6 }}
{{- end }}
{{- if .static }}
- name: CONVOY_KAFKA__GROUP_INSTANCE_ID
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
{{- end }}
{{- with $values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Settings that are files, by name: path, volume, and where the volume comes from. Arguments as for convoy.env. */}}
{{- define "convoy.files" -}}
{{- $values := .root.Values }}
{{- if .api }}
{{- with $values.apiKey }}
{{- if or .existingSecret .value }}
api.key_file:
  path: /etc/convoy/api-key/key
  volume: api-key
  secret: {{ include "convoy.apiKeySecretName" $.root }}
  items: [{key: {{ .secretKey }}, path: key}]
{{- end }}
{{- end }}
{{- with $values.apiCa }}
{{- if or .secret .configMap }}
api.ca_file:
  path: /etc/convoy/api-ca/ca.crt
  volume: api-ca
  secret: {{ .secret | quote }}
  configMap: {{ .configMap | quote }}
  items: [{key: {{ .key }}, path: ca.crt}]
{{- end }}
{{- end }}
{{- end }}
{{- with $values.kafka.ca }}
{{- if or .secret .configMap }}
kafka.ssl_ca_file:
  path: /etc/convoy/kafka-ca/ca.crt
  volume: kafka-ca
  secret: {{ .secret | quote }}
  configMap: {{ .configMap | quote }}
  items: [{key: {{ .key }}, path: ca.crt}]
{{- end }}
{{- end }}
{{- with $values.kafka.clientCertificate }}
{{- if .secret }}
{{- $items := list (dict "key" .certificateKey "path" "tls.crt") (dict "key" .privateKeyKey "path" "tls.key") }}
kafka.ssl_cert_file:
  path: /etc/convoy/kafka-client/tls.crt
  volume: kafka-client
  secret: {{ .secret }}
  items: {{ toJson $items }}
kafka.ssl_key_file:
  path: /etc/convoy/kafka-client/tls.key
{{- end }}
{{- end }}
{{- end }}

{{- define "convoy.volumes" -}}
- name: tmp
  emptyDir:
    sizeLimit: 64Mi
{{- range $setting, $file := include "convoy.files" . | fromYaml }}
{{- if $file.volume }}
- name: {{ $file.volume }}
  {{- if $file.secret }}
  secret:
    secretName: {{ $file.secret }}
    defaultMode: 0440
  {{- else }}
  configMap:
    name: {{ $file.configMap }}
    defaultMode: 0444
  {{- end }}
    items: {{ toJson $file.items }}
{{- end }}
{{- end }}
{{- with .root.Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Whole folders: a file mounted by subPath would never change with its Secret. */}}
{{- define "convoy.volumeMounts" -}}
- name: tmp
  mountPath: /tmp
{{- range $setting, $file := include "convoy.files" . | fromYaml }}
{{- if $file.volume }}
- name: {{ $file.volume }}
  mountPath: {{ dir $file.path }}
  readOnly: true
{{- end }}
{{- end }}
{{- with .root.Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

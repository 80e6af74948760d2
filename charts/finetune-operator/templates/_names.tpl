{{- define "finetune.app" -}}
{{- .Values.nameOverride | default .Chart.Name -}}
{{- end -}}

{{- /* The name of a Service has no dots and begins with a letter; those of releases and the overrides may differ. */ -}}
{{- define "finetune.name" -}}
{{- $app := include "finetune.app" . -}}
{{- $name := .Values.fullnameOverride -}}
{{- if not $name -}}
{{- $name = ternary .Release.Name (printf "%s-%s" .Release.Name $app) (contains $app .Release.Name) -}}
{{- end -}}
{{- $name = $name | replace "." "-" -}}
{{- if regexMatch "^[0-9]" $name -}}
{{- $name = printf "r%s" $name -}}
{{- end -}}
{{- $name | trunc 53 | trimAll "-" -}}
{{- end -}}

{{- define "finetune.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (include "finetune.name" .) -}}
{{- end -}}

{{- define "finetune.selector" -}}
app.kubernetes.io/name: {{ include "finetune.app" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- /* The labels of an object: (list $ further labels) */ -}}
{{- define "finetune.labelsWith" -}}
{{- $root := index . 0 -}}
{{ include "finetune.selector" $root }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version }}
{{- with merge dict (index . 1) $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "finetune.labels" -}}
{{ include "finetune.labelsWith" (list . dict) }}
{{- end -}}

{{- /* The reference of an image: (list $ .Values.image) */ -}}
{{- define "finetune.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $image.repository ($image.tag | default $root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{- /* cpuPods as JSON, without the texts that are empty. */ -}}
{{- define "finetune.cpuPods" -}}
{{- $pods := deepCopy .Values.cpuPods -}}
{{- range $key := list "runtimeClassName" "priorityClassName" "maxMemory" -}}
{{- if not (get $pods $key) -}}
{{- $pods = omit $pods $key -}}
{{- end -}}
{{- end -}}
{{- toJson $pods -}}
{{- end -}}

{{- /* The operator watches the Lease too, so it must be in a watched namespace. */ -}}
{{- define "finetune.leaseNamespace" -}}
{{- if or (not .Values.watchNamespaces) (has .Release.Namespace .Values.watchNamespaces) -}}
{{- .Release.Namespace -}}
{{- else -}}
{{- first .Values.watchNamespaces -}}
{{- end -}}
{{- end -}}

{{- define "finetune.subject" -}}
subjects:
  - kind: ServiceAccount
    name: {{ include "finetune.serviceAccount" . }}
    namespace: {{ .Release.Namespace | quote }}
{{- end -}}

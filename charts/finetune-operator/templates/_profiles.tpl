{{- /* An object with the defaults of its schema, as the API server stores it, in JSON: (list schema object) */ -}}
{{- define "finetune.withDefaults" -}}
{{- $object := deepCopy (index . 1) -}}
{{- range $field, $schema := (index . 0).properties -}}
{{- if and (not (hasKey $object $field)) (hasKey $schema "default") -}}
{{- $_ := set $object $field $schema.default -}}
{{- end -}}
{{- if and (hasKey $object $field) $schema.properties -}}
{{- $_ := set $object $field (include "finetune.withDefaults" (list $schema (get $object $field)) | fromJson) -}}
{{- end -}}
{{- end -}}
{{- toJson $object -}}
{{- end -}}

{{- /* Fails where a profile of the values exists and is not, or cannot become, that of this release: (list $ schema) */ -}}
{{- define "finetune.checkProfiles" -}}
{{- $root := index . 0 -}}
{{- $schema := index . 1 -}}
{{- $default := $root.Values.profiles.default -}}
{{- range (lookup "finetune.dev/v1alpha1" "AcceleratorProfile" "" "").items -}}
{{- $name := .metadata.name -}}
{{- $spec := get $root.Values.profiles.pools $name -}}
{{- $annotations := .metadata.annotations | default dict -}}
{{- $release := get $annotations "meta.helm.sh/release-name" -}}
{{- $namespace := get $annotations "meta.helm.sh/release-namespace" -}}
{{- $isOwn := and (eq (toString $release) $root.Release.Name) (eq (toString $namespace) $root.Release.Namespace) -}}
{{- $isKept := eq (get $annotations "helm.sh/resource-policy") "keep" -}}
{{- /* Helm deletes one that is in no pool any more, unless it is kept. */ -}}
{{- $stays := not (and $isOwn $root.Release.IsUpgrade (not $isKept)) -}}
{{- if and $spec (not $release) -}}
{{- fail (printf "AcceleratorProfile %s exists and belongs to no release: set profiles.pools.%s=null, or delete it first" $name $name) -}}
{{- else if and $spec (not $isOwn) -}}
{{- fail (printf "AcceleratorProfile %s belongs to the release %s in the namespace %s: set profiles.create=false, or profiles.pools.%s=null; if that release is gone, delete the profile" $name $release $namespace $name) -}}
{{- else if and $spec $root.Release.IsInstall -}}
{{- $wanted := include "finetune.withDefaults" (list $schema (set (deepCopy $spec) "default" (eq $name $default))) -}}
{{- if ne ($wanted | fromJson | toJson) (.spec | toJson | fromJson | toJson) -}}
{{- fail (printf "AcceleratorProfile %s stayed from an earlier installation and differs from the values, and Helm would not change it: delete it first (kubectl delete accel %s)" $name $name) -}}
{{- end -}}
{{- else if and (not $spec) .spec.default $stays (or $default $isOwn) -}}
{{- fail (printf "AcceleratorProfile %s, which is not in profiles.pools, is marked as default, but profiles.default is %q: delete it, or set its spec.default to false" $name $default) -}}
{{- end -}}
{{- end -}}
{{- end -}}

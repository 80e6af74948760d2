{{- /* Labels of every pod that the operator creates, whatever the release is called. */ -}}
{{- define "finetune.managed" -}}
app.kubernetes.io/managed-by: finetune-operator
{{- end -}}

{{- define "finetune.stagePods" -}}
matchLabels: {{- include "finetune.managed" . | nindent 2 }}
matchExpressions:
  - {key: finetune.dev/stage, operator: In, values: [prepare, train, evaluate, export]}
{{- end -}}

{{- define "finetune.trainPods" -}}
matchLabels:
  {{- include "finetune.managed" . | nindent 2 }}
  finetune.dev/stage: train
{{- end -}}

{{- define "finetune.servingPods" -}}
matchLabels: {{- include "finetune.managed" . | nindent 2 }}
matchExpressions:
  - {key: finetune.dev/endpoint, operator: Exists}
{{- end -}}

{{- define "finetune.operatorPods" -}}
namespaceSelector:
  matchLabels: {kubernetes.io/metadata.name: {{ .Release.Namespace | quote }}}
podSelector:
  matchLabels: {{- include "finetune.selector" . | nindent 4 }}
{{- end -}}

{{- define "finetune.watchedNamespaces" -}}
{{- if .Values.watchNamespaces -}}
matchExpressions:
  - key: kubernetes.io/metadata.name
    operator: In
    values: {{- toYaml .Values.watchNamespaces | nindent 6 }}
{{- else -}}
{}
{{- end -}}
{{- end -}}

{{- /* A rule without peers would allow all of them, so a list that is empty makes no rule. */ -}}
{{- define "finetune.dnsRule" -}}
{{- with .Values.networkPolicy.dns -}}
{{- if .to -}}
- to: {{- toYaml .to | nindent 4 }}
  ports:
    {{- range .ports }}
    - {protocol: UDP, port: {{ . }}}
    - {protocol: TCP, port: {{ . }}}
    {{- end }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* The policies of the pods in one namespace with jobs: (list $ namespace) */ -}}
{{- define "finetune.jobPolicies" -}}
{{- $root := index . 0 -}}
{{- $namespace := index . 1 -}}
{{- $name := include "finetune.name" $root -}}
{{- $policy := $root.Values.networkPolicy -}}
# Every pod of the operator in this namespace: nothing, unless a policy below allows it.
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {{ $name }}-default
  namespace: {{ $namespace | quote }}
  labels: {{- include "finetune.labels" $root | nindent 4 }}
spec:
  podSelector:
    matchLabels: {{- include "finetune.managed" $root | nindent 6 }}
  policyTypes: [Ingress, Egress]
---
# Every stage: DNS, and the operator reads its progress.
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {{ $name }}-stages
  namespace: {{ $namespace | quote }}
  labels: {{- include "finetune.labels" $root | nindent 4 }}
spec:
  podSelector: {{- include "finetune.stagePods" $root | nindent 4 }}
  policyTypes: [Ingress, Egress]
  ingress:
    - from:
        - {{- include "finetune.operatorPods" $root | nindent 10 }}
        {{- with $policy.telemetryFrom }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      ports:
        - {protocol: TCP, port: 9400}
  {{- with include "finetune.dnsRule" $root }}
  egress: {{- . | nindent 4 }}
  {{- end }}
---
# Prepare downloads models and data.
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {{ $name }}-prepare
  namespace: {{ $namespace | quote }}
  labels: {{- include "finetune.labels" $root | nindent 4 }}
spec:
  podSelector:
    matchLabels:
      {{- include "finetune.managed" $root | nindent 6 }}
      finetune.dev/stage: prepare
  policyTypes: [Egress]
  {{- if or $policy.prepare.internet $policy.prepare.to }}
  egress:
    - to:
        {{- if $policy.prepare.internet }}
        - ipBlock:
            cidr: 0.0.0.0/0
            except:
              - 169.254.0.0/16
              - 100.100.100.200/32
              - 168.63.129.16/32
              {{- range $policy.prepare.blockedCIDRs }}
              {{- if not (contains ":" .) }}
              - {{ . | quote }}
              {{- end }}
              {{- end }}
        - ipBlock:
            cidr: "::/0"
            except:
              - "fd00:ec2::254/128"
              - "fd20:ce::254/128"
              {{- range $policy.prepare.blockedCIDRs }}
              {{- if contains ":" . }}
              - {{ . | quote }}
              {{- end }}
              {{- end }}
        {{- end }}
        {{- with $policy.prepare.to }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  {{- end }}
---
# The ranks of a training job connect to each other on ports that the kernel chooses. A NetworkPolicy cannot compare the
# labels of two pods, so this allows all training pods of the namespace.
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {{ $name }}-train
  namespace: {{ $namespace | quote }}
  labels: {{- include "finetune.labels" $root | nindent 4 }}
spec:
  podSelector: {{- include "finetune.trainPods" $root | nindent 4 }}
  policyTypes: [Ingress, Egress]
  ingress:
    - from:
        - podSelector: {{- include "finetune.trainPods" $root | nindent 12 }}
  egress:
    - to:
        - podSelector: {{- include "finetune.trainPods" $root | nindent 12 }}
        {{- with $policy.train.to }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
---
# A served model answers; it calls nothing. The kubelet mounts its claim, for KServe too.
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {{ $name }}-serving
  namespace: {{ $namespace | quote }}
  labels: {{- include "finetune.labels" $root | nindent 4 }}
spec:
  podSelector: {{- include "finetune.servingPods" $root | nindent 4 }}
  policyTypes: [Ingress, Egress]
  ingress:
    - from:
        - {{- include "finetune.operatorPods" $root | nindent 10 }}
        {{- with $policy.serving.from }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      ports:
        - {protocol: TCP, port: 8080}
  {{- with include "finetune.dnsRule" $root }}
  egress: {{- . | nindent 4 }}
  {{- end }}
{{- end -}}

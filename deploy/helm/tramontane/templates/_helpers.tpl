{{/* Names and labels. A "part" is what a pod is: gateway, coordinator, expert-node, etcd. */}}
{{- define "tramontane.labels" -}}
app.kubernetes.io/name: tramontane
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "tramontane.part" -}}
{{ include "tramontane.labels" (index . 0) }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "tramontane.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* The etcd that processes are told of. */}}
{{- define "tramontane.registry" -}}
{{- if .Values.etcd.enabled -}}
{{- $name := printf "%s-etcd" .Release.Name -}}
{{- $hosts := list -}}
{{- range $i := until (int .Values.etcd.replicas) }}{{ $hosts = append $hosts (printf "%s-%d.%s:2379" $name $i $name) }}{{ end -}}
etcd://{{ join "," $hosts }}
{{- else -}}
etcd://{{ join "," .Values.etcd.endpoints }}
{{- end -}}
{{- end }}

{{/* What every pod of ours is held to. No links: they are variables named TRAMONTANE_…, as settings are. */}}
{{- define "tramontane.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "tramontane.container" -}}
image: {{ include "tramontane.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext: {{- include "tramontane.locked" . | nindent 2 }}
{{- end }}

{{- define "tramontane.locked" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* Over machines, then over zones. */}}
{{- define "tramontane.spread" -}}
{{- $root := index . 0 }}
{{- $part := index . 1 }}
topologySpreadConstraints:
{{- range $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
- topologyKey: {{ $key }}
  maxSkew: 1
  whenUnsatisfiable: {{ $root.Values.spread }}
  labelSelector:
    matchLabels: {{- include "tramontane.part" (list $root $part) | nindent 6 }}
{{- end }}
{{- end }}

{{/* Half an hour to load; then out of service after 30 s of no answer, started again after 60 s of none. */}}
{{- define "tramontane.probes" -}}
startupProbe:
  httpGet: {path: /readyz, port: metrics}
  periodSeconds: 30
  timeoutSeconds: 5
  failureThreshold: 60
readinessProbe:
  httpGet: {path: /readyz, port: metrics}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 3
livenessProbe:
  httpGet: {path: /healthz, port: metrics}
  periodSeconds: 20
  timeoutSeconds: 5
  failureThreshold: 3
{{- end }}

{{/* Settings that all roles share, and what the pod is called. */}}
{{- define "tramontane.environment" -}}
envFrom:
- configMapRef: {name: {{ .Release.Name }}-settings}
env:
- name: POD_NAME
  valueFrom:
    fieldRef: {fieldPath: metadata.name}
- name: POD_IP
  valueFrom:
    fieldRef: {fieldPath: status.podIP}
{{- end }}

{{- define "tramontane.threads" -}}
- name: TRAMONTANE_THREADS
  valueFrom:
    resourceFieldRef: {resource: requests.cpu, divisor: "1"}
{{- end }}

{{- define "tramontane.tlsArgs" -}}
- --tls-cert=/etc/tramontane/tls/tls.crt
- --tls-key=/etc/tramontane/tls/tls.key
- --tls-ca=/etc/tramontane/tls/ca.crt
- --metrics=0.0.0.0:9090
{{- end }}

{{- define "tramontane.mounts" -}}
- {name: tls, mountPath: /etc/tramontane/tls, readOnly: true}
- {name: etcd-client, mountPath: /etc/tramontane/etcd, readOnly: true}
{{- if ne .Values.model.path "demo" }}
- {name: weights, mountPath: /models, readOnly: true}
{{- end }}
{{- end }}

{{- define "tramontane.volumes" -}}
{{- $root := index . 0 }}
- name: tls
  secret: {secretName: {{ $root.Values.tls.secretPrefix }}-{{ index . 1 }}-tls, defaultMode: 0440}
- name: etcd-client
  secret: {secretName: {{ $root.Values.etcd.clientSecret }}, defaultMode: 0440}
{{- if eq $root.Values.model.path "demo" }}
{{- else if $root.Values.weights.hostPath }}
- name: weights
  hostPath: {path: {{ $root.Values.weights.hostPath }}, type: Directory}
{{- else }}
- name: weights
  persistentVolumeClaim: {claimName: {{ $root.Values.weights.claim }}, readOnly: true}
{{- end }}
{{- end }}

{{/* Reads the checkpoint once, and compares it with its manifest, before anything is loaded from it. */}}
{{- define "tramontane.verify" -}}
{{- if and .Values.weights.verify (ne .Values.model.path "demo") -}}
initContainers:
- name: verify
  {{- include "tramontane.container" . | nindent 2 }}
  args: [models, verify, $(TRAMONTANE_MODEL)]
  envFrom:
  - configMapRef: {name: {{ .Release.Name }}-settings}
  resources:
    requests: {cpu: "1", memory: 1Gi}
    limits: {memory: 2Gi}
  volumeMounts:
  - {name: weights, mountPath: /models, readOnly: true}
{{- end }}
{{- end }}

{{- define "tramontane.where" -}}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 0 }}
{{- end }}
{{- end }}

#!/bin/sh
# Installs meshpulse into the cluster of kubectl's current context. Can be run again: it changes what differs, keeps the
# certificate, and takes the external metrics API from another adapter only with --fallback, which asks that for the rest.
set -eu
umask 077 # keys are written to a temporary folder

usage() {
	cat <<'USAGE'
usage: install.sh --image IMAGE [--replicas] [--component NAME]... [--fallback NAMESPACE/SERVICE[:PORT]] [--shadow-prometheus URL] [--no-apiservice] [--dry-run]
       install.sh --image IMAGE [--replicas] [--component NAME]... --shadow NAMESPACE/SERVICE[:PORT] [--dry-run]
       install.sh --rotate-cert [--dry-run]
       install.sh --release-apiservice [--dry-run]

  --image IMAGE      the image to run; build one with `make push IMAGE=…`, which prints its name with the digest that pins it,
                     or with manifests/Dockerfile
  --component NAME   change what is installed (see components/NAME): mesh-namespaces lets only namespaces report that Istio
                     injects; own-namespaces has queries read their own namespace only; custom-metrics serves
                     custom.metrics.k8s.io too; prometheus-api serves dashboards, and keda ScaledObjects, each with a
                     Secret of yours; alerts and pod-monitor are for the Prometheus operator; dns lets it ask a DNS that is not in kube-system;
                     host-network is for those whose control plane does not reach pods; guaranteed requests what it
                     may use
  --replicas         two replicas in the place of one, each with what all sidecars send (metricsapi/README.md, "Several
                     replicas"); left out, one again
  --fallback NAMESPACE/SERVICE[:PORT]
                     the adapter that serves external metrics now: meshpulse takes the API over, answers what is its own
                     and asks the other adapter for the rest. Give it each time
  --fallback-ca FILE the authority of that adapter's certificate (PEM); without it what its APIService has as caBundle
  --shadow NAMESPACE/SERVICE[:PORT]
                     the adapter that serves external metrics now goes on doing so: meshpulse claims no API of metrics, acts on
                     nothing, and compares its answers with that adapter's (meshpulse shadow report). Give it each time
  --shadow-ca FILE   the authority of that adapter's certificate (PEM), needed where it does not have external.metrics.k8s.io
  --shadow-prometheus URL
                     a Prometheus that metrics are compared with (meshpulse shadow report); nothing goes by what it says. A
                     Service's pods are let to by NAME.NAMESPACE.svc, another host by its port. Give it each time
  --release-apiservice
                     give the APIs back to the adapter that had them, and nothing else
  --no-apiservice    leave external.metrics.k8s.io alone: meshpulse listens, and no HPA asks it
  --rotate-cert      replace the serving certificate and its authority, and that of several replicas, and nothing else
  --dry-run          look, print what would be done, change nothing

Needs kubectl (with rights to create cluster roles and API services) and openssl.
USAGE
}

namespace=meshpulse-system
service=meshpulse
secret=meshpulse-serving-cert
peers=meshpulse-peer-cert
apiservice=v1beta1.external.metrics.k8s.io
custom=v1beta2.custom.metrics.k8s.io # with --component custom-metrics
older=v1beta1.custom.metrics.k8s.io  # if the adapter of --fallback has it
own=v1alpha1.meshpulse.io # a group of our own, which explains: nobody's metrics hang on it
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)

say() { printf '%s\n' "$*"; }
die() {
	printf 'install.sh: %s\n' "$*" >&2
	exit 1
}

# owner_of prints NAMESPACE/NAME of the Service behind an APIService, nothing if there is none.
owner_of() {
	kubectl get apiservice "$1" --ignore-not-found -o 'jsonpath={.spec.service.namespace}/{.spec.service.name}'
}

# look_at_apiservice sets $owner to whose the API is. A look that fails is not "nobody's".
look_at_apiservice() {
	owner=$(owner_of "$apiservice") ||
		die "cannot tell whose $apiservice is, so nothing was changed: see kubectl's message above"
}

# The annotation that keeps the spec of the adapter from which the API was taken.
kept=meshpulse.io/replaced-spec

# kept_spec prints that of an APIService, nothing if none is kept.
kept_spec() {
	kubectl get apiservice "$1" --ignore-not-found -o 'jsonpath={.metadata.annotations.meshpulse\.io/replaced-spec}'
}

# taken says whether an APIService is ours and was taken from another adapter.
taken() {
	who=$(owner_of "$1") || die "cannot tell whose $1 is, so nothing was changed: see kubectl's message above"
	[ "$who" = "$namespace/$service" ] || return 1
	was=$(kept_spec "$1") || die "cannot tell whether $1 was taken from another adapter, so nothing was changed: see kubectl's message above"
	[ -n "$was" ]
}

# need_fallback: while an API is taken from another adapter, that is asked, whether or not the API is claimed anew. One that is
# given up is put back.
need_fallback() {
	[ -z "$fallback" ] || return 0
	for name in "$apiservice" "$custom" "$older"; do
		[ "$name" = "$apiservice" ] || custom_asked || continue
		! taken "$name" || die "meshpulse answers for another adapter, whose metrics would get no answer. Nothing was changed.
Give --fallback NAMESPACE/SERVICE again, or run --release-apiservice first."
	done
}

refuse_foreign() {
	case $owner in
	'' | "$namespace/$service" | "${fallback%:*}") return 0 ;;
	esac
	[ -z "$fallback" ] || die "external.metrics.k8s.io is served by $owner, not by ${fallback%:*}. Nothing was changed."
	die "external.metrics.k8s.io is served by $owner, and only one adapter of a cluster can have it. Nothing was changed.
Either uninstall that adapter first (kubectl get hpa -A shows whose HPAs use external metrics: they will ask meshpulse),
run meshpulse beside it with --fallback $owner, which asks it for what is not meshpulse's,
or serving no HPA, with --no-apiservice."
}

# refuse_keda: KEDA's operator writes the authority of its own certificates into the APIService, whosever that is, and the API
# server would trust meshpulse no longer.
refuse_keda() {
	kubectl get deployments -A -o 'jsonpath={range .items[*]}{.metadata.namespace}/{.metadata.name} {.spec.template.spec.containers[*].args}{"\n"}{end}' >"$work/deployments" ||
		die "cannot tell whether KEDA's operator would take the API back, so nothing was changed: see kubectl's message above"
	takers=$(grep -e '--enable-cert-rotation[=",]' "$work/deployments" | grep -v -e '--enable-cert-rotation=false' -e '--enable-apiservice-patching=false' | cut -d' ' -f1) || takers=''
	[ -z "$takers" ] || die "KEDA's operator ($takers) writes its own caBundle into $apiservice, and would take the API back. Nothing was changed.
Give it --enable-apiservice-patching=false. A release without that flag: --enable-cert-rotation=false and certificates of your own."
}

# look_at_fallback writes the authority of the other adapter to $work/fallback-ca.crt.
look_at_fallback() {
	other=$work/fallback-ca.crt
	if [ -n "$fallback_ca" ]; then
		cp "$fallback_ca" "$other"
	else
		kubectl -n "$namespace" get configmap meshpulse-fallback-ca --ignore-not-found -o 'jsonpath={.data.ca\.crt}' >"$other"
		for name in "$apiservice" "$custom" "$older"; do
			[ "$(owner_of "$name")" = "${fallback%:*}" ] || continue
			kubectl get apiservice "$name" --ignore-not-found -o 'jsonpath={.spec.caBundle}' | openssl base64 -d -A >"$other"
			break
		done
	fi
	openssl x509 -noout -in "$other" 2>/dev/null || die "there is no authority that the certificate of ${fallback%:*} could be checked against. Nothing was changed.
Its APIService has no caBundle: give --fallback-ca FILE, the authority of its certificate in PEM."
}

# look_at_shadow: another adapter has the API while meshpulse is compared with it. One that has it is asked through the API server,
# another one at its Service.
look_at_shadow() {
	[ "$owner" != "$namespace/$service" ] || die "external.metrics.k8s.io is served by meshpulse, and --shadow is for while another adapter serves it. Nothing was changed.
Run --release-apiservice first, or uninstall.sh where it was taken from nobody."
	if [ -n "$shadow_ca" ]; then
		other=$work/shadow-ca.crt
		cp "$shadow_ca" "$other"
		openssl x509 -noout -in "$other" 2>/dev/null || die "--shadow-ca $shadow_ca has no authority in PEM. Nothing was changed."
	elif [ "$owner" != "${shadow%:*}" ]; then
		die "external.metrics.k8s.io is served by ${owner:-nobody}, so ${shadow%:*} has to be asked at its Service. Nothing was changed.
Give --shadow-ca FILE, the authority of its certificate in PEM."
	fi
}

# take_over leads the API server from the other adapter to meshpulse, and keeps the way back. If the APIService changes
# meanwhile, the patch is refused.
take_over() {
	before=$(kubectl get apiservice "$1" -o 'jsonpath={.spec}')
	version=$(kubectl annotate apiservice "$1" --overwrite "$kept=$before" -o 'jsonpath={.metadata.resourceVersion}')
	unproven="$unproven $1"
	[ "$1" = "$custom" ] && priority=200 || priority=100
	kubectl patch apiservice "$1" --type=json -p "[
		{\"op\": \"test\", \"path\": \"/metadata/resourceVersion\", \"value\": \"$version\"},
		{\"op\": \"test\", \"path\": \"/spec/service/namespace\", \"value\": \"${fallback%%/*}\"},
		{\"op\": \"test\", \"path\": \"/spec/service/name\", \"value\": \"$(basename "${fallback%:*}")\"},
		{\"op\": \"replace\", \"path\": \"/spec\", \"value\": {
			\"group\": \"${1#*.}\", \"version\": \"${1%%.*}\", \"groupPriorityMinimum\": 100, \"versionPriority\": $priority,
			\"service\": {\"namespace\": \"$namespace\", \"name\": \"$service\", \"port\": 443}, \"caBundle\": \"$ca\"}}]"
}

# find_prometheus reads --shadow-prometheus: its port, and the namespace of a Service's name, are what the NetworkPolicy lets meshpulse
# to. A name of two labels may be either, so both are let to.
find_prometheus() {
	components="$components shadow-prometheus"
	host=${prometheus#*://}
	host=${host%%/*}
	case $prometheus in https:*) prometheus_port=443 ;; *) prometheus_port=80 ;; esac
	case $host in
	*]) ;;
	*:*) prometheus_port=${host##*:} host=${host%:*} ;;
	esac
	name=${host#*.}
	prometheus_namespace=${name%%.*}
	case $host in
	\[*) where='port' ;;
	*.*.*) case ${name#*.} in svc | svc.*) where=namespace ;; *) where=port ;; esac ;;
	*.*) where='namespace port' ;;
	*) where=namespace prometheus_namespace=$namespace ;;
	esac
	case $prometheus_port in '' | *[!0-9]*) where='' ;; esac
	case $host in '' | .* | *..*) where='' ;; esac
	[ -n "$where" ] || die "--shadow-prometheus $prometheus: give a URL such as http://prometheus.monitoring.svc:9090"
	for rule in $where; do components="$components shadow-prometheus/$rule"; done
}

# custom_asked says whether custom.metrics.k8s.io is to be claimed too.
custom_asked() {
	case "$claim $components " in "yes "*" custom-metrics "*) ;; *) return 1 ;; esac
}

# refuse_foreign_custom looks at every version of the group: an HPA controller asks for the one that the cluster prefers.
refuse_foreign_custom() {
	all=$(kubectl get apiservices -o \
		'jsonpath={range .items[?(@.spec.group=="custom.metrics.k8s.io")]}{.metadata.name} {.spec.service.namespace}/{.spec.service.name}{"\n"}{end}') ||
		die "cannot tell whose custom.metrics.k8s.io is, so nothing was changed: see kubectl's message above"
	others=$(printf '%s\n' "$all" | grep -v -e " $namespace/$service\$" -e " ${fallback%:*}\$") || true
	[ -z "$others" ] || die "custom.metrics.k8s.io is served by another adapter, and only one of a cluster can have it. Nothing was changed.
$others
Either uninstall that adapter first, run meshpulse beside it with --fallback if all of them are one Service's, or leave out
--component custom-metrics: HPAs with External metrics need it not."
}

# make_certificate writes tls.key, tls.crt and ca.crt for a name and its usage to a folder. The authority's key signs once and is
# thrown away: there is nothing to guard, and a new certificate means a new authority (--rotate-cert).
make_certificate() {
	mkdir -p "$1"
	cat >"$1/openssl.cnf" <<CNF
[req]
distinguished_name = name
prompt = no
[name]
CN = $2
[ca]
basicConstraints = critical, CA:true, pathlen:0
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
[serving]
basicConstraints = critical, CA:false
keyUsage = critical, digitalSignature
extendedKeyUsage = $3
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = DNS:$2
CNF
	{
		openssl ecparam -name prime256v1 -genkey -noout -out "$1/ca.key" &&
		openssl ecparam -name prime256v1 -genkey -noout -out "$1/tls.key" &&
		openssl req -x509 -new -sha256 -days 3650 -config "$1/openssl.cnf" -extensions ca \
			-subj /CN=meshpulse-authority -key "$1/ca.key" -out "$1/ca.crt" &&
		openssl req -new -sha256 -config "$1/openssl.cnf" -key "$1/tls.key" -out "$1/tls.csr" &&
		openssl x509 -req -sha256 -days 3650 -extfile "$1/openssl.cnf" -extensions serving -CAcreateserial \
			-CA "$1/ca.crt" -CAkey "$1/ca.key" -in "$1/tls.csr" -out "$1/tls.crt"
	} 2>"$work/openssl.log" || {
		cat "$work/openssl.log" >&2
		die "openssl could not make a certificate: see its message above"
	}
	rm -f "$1/ca.key"
}

make_serving_certificate() { make_certificate "$work" "$service.$namespace.svc" serverAuth; }

# The replicas' Secret has the certificate that comes next, too, and its authority among those that are trusted: a rotation reaches
# one replica minutes after the other, and each knows by then who signs.
make_next_peer() { make_certificate "$work/next" "meshpulse-peer.$namespace.svc" clientAuth,serverAuth; }

# peer_secret prints the replicas' Secret: tls.crt and tls.key of a folder, trusting a file of authorities beside the next one.
peer_secret() {
	cat "$work/next/ca.crt" >>"$2"
	kubectl -n "$namespace" create secret generic "$peers" --type=kubernetes.io/tls --dry-run=client -o yaml \
		--from-file=tls.crt="$1/tls.crt" --from-file=tls.key="$1/tls.key" --from-file=ca.crt="$2" \
		--from-file=next.crt="$work/next/tls.crt" --from-file=next.key="$work/next/tls.key" --from-file=next-ca.crt="$work/next/ca.crt"
}

# peers_there succeeds if there is a Secret of the replicas.
peers_there() {
	there=$(kubectl -n "$namespace" get secret "$peers" --ignore-not-found -o name) ||
		die "cannot tell whether replicas have a certificate already: see kubectl's message above"
	[ -n "$there" ]
}

make_peers() {
	peers_there && return
	make_certificate "$work/peer" "meshpulse-peer.$namespace.svc" clientAuth,serverAuth
	make_next_peer
	peer_secret "$work/peer" "$work/peer/ca.crt" | kubectl create -f -
}

# rotate_peers serves what came next, and trusts the one before until the next rotation.
rotate_peers() {
	mkdir -p "$work/peer"
	for pair in next.crt:tls.crt next.key:tls.key next-ca.crt:ca.crt ca.crt:before.crt; do
		kubectl -n "$namespace" get secret "$peers" -o "jsonpath={.data.$(printf '%s' "${pair%:*}" | sed 's/\./\\./')}" |
			openssl base64 -d -A >"$work/peer/${pair#*:}"
		[ -s "$work/peer/${pair#*:}" ] || die "Secret $namespace/$peers has no ${pair%:*}: delete it, and run install.sh --replicas again"
	done
	openssl x509 -in "$work/peer/before.crt" >>"$work/peer/ca.crt" # the first of them, which signed
	make_next_peer
	peer_secret "$work/peer" "$work/peer/ca.crt" | kubectl replace -f -
}

# secret_manifest prints the Secret of the certificate in $work.
secret_manifest() {
	kubectl -n "$namespace" create secret generic "$secret" --type=kubernetes.io/tls --dry-run=client -o yaml \
		--from-file=tls.crt="$work/tls.crt" --from-file=tls.key="$work/tls.key" --from-file=ca.crt="$work/ca.crt"
}

# look_at_secret sets $ca to the authorities (base64 of PEM) that the Secret's certificate is checked against, to nothing if
# there is no Secret yet.
look_at_secret() {
	found=$(kubectl -n "$namespace" get secret "$secret" --ignore-not-found -o name) ||
		die "cannot tell whether there is a certificate already, so nothing was changed: see kubectl's message above"
	ca=''
	[ -n "$found" ] || return 0
	ca=$(kubectl -n "$namespace" get secret "$secret" -o 'jsonpath={.data.ca\.crt}')
	[ -n "$ca" ] || die "Secret $namespace/$secret has no ca.crt, so the API server could not check the certificate.
Delete it and run this again, and it is made anew."
}

warn_expiry() {
	kubectl -n "$namespace" get secret "$secret" -o 'jsonpath={.data.tls\.crt}' |
		openssl base64 -d -A | openssl x509 -noout -checkend 2592000 >/dev/null ||
		say "WARNING: the serving certificate ends within 30 days: run install.sh --rotate-cert"
}

# patch_ca puts authorities into an APIService that is still ours when the patch arrives.
patch_ca() {
	kubectl patch apiservice "$1" --type=json -p "[
		{\"op\": \"test\", \"path\": \"/spec/service/namespace\", \"value\": \"$namespace\"},
		{\"op\": \"test\", \"path\": \"/spec/service/name\", \"value\": \"$service\"},
		{\"op\": \"add\", \"path\": \"/spec/caBundle\", \"value\": \"$2\"}]"
}

# claim_api leads the API server to meshpulse for external metrics.
claim_api() {
	if [ "$owner" = "$namespace/$service" ]; then
		patch_ca "$apiservice" "$ca"
	elif [ -n "$owner" ]; then
		take_over "$apiservice"
	else
		# create, not apply: if another adapter has come in the meantime, this fails.
		unproven="$unproven $apiservice"
		apiservice_manifest apiservice | kubectl create -f -
	fi
	prove "$apiservice"
}

# claim_custom does the same with custom.metrics.k8s.io, for which meshpulse has been reached by now: with the version that HPA
# controllers prefer, and the older one where the other adapter has it.
claim_custom() {
	for name in "$custom" "$older"; do
		case $name:$(owner_of "$name") in
		"$older:") continue ;;
		"$custom:")
			unproven="$unproven $custom"
			apiservice_manifest custom-metrics/apiservice | kubectl create -f -
			;;
		*":$namespace/$service") patch_ca "$name" "$ca" ;;
		*) take_over "$name" ;;
		esac
		prove "$name"
	done
}

apiservice_manifest() {
	cat "$here/components/$1/apiservice.yaml"
	printf '  caBundle: %s\n' "$ca"
}

# own_api leads the API server to the group of our own. It comes first, since an APIService that does not answer stalls
# discovery and the deletion of namespaces: where it is not reached, the metrics' is not claimed, nor left.
own_api() {
	[ -z "$claim" ] || unproven="$apiservice $custom $older" # those that are ours, as it is looked at then
	case $(owner_of "$own") in
	'')
		unproven="$unproven $own"
		apiservice_manifest own-api | kubectl create -f -
		;;
	"$namespace/$service")
		unproven="$unproven $own"
		patch_ca "$own" "$ca"
		;;
	*) die "$own is somebody else's: kubectl get apiservice $own" ;;
	esac
	prove "$own"
}

# prove waits until the API server has reached meshpulse by an APIService. All of ours that are unproven when this script ends
# are taken back.
prove() {
	if ! kubectl wait --for=condition=Available --timeout=60s "apiservice/$1"; then
		message=$(kubectl get apiservice "$1" -o 'jsonpath={.status.conditions[?(@.type=="Available")].message}') || message='nothing, see above'
		case $1 in
		"$custom" | "$older") left=" by $1, which is as it was before: HPAs with External metrics ask meshpulse" ;;
		*) left=", and no APIService of ours is left: HPAs do not ask it" ;;
		esac
		die "the API server does not reach meshpulse$left. It says: $message
What can be in the way:
  a firewall or security group: the control plane has to reach the pod's port (10250; 4443 with host-network)
  a NetworkPolicy of yours that selects the pod: kubectl -n $namespace get networkpolicy
  an overlay network, from which the control plane is cut off (EKS with Calico's or Cilium's): --component host-network"
	fi
	[ "$1" = "$own" ] || unproven=''
}

# put_back gives an APIService that is ours back to the adapter from which it was taken. If it changes meanwhile, the patch is
# refused.
put_back() {
	kubectl patch apiservice "$1" --type=json -p "[
		{\"op\": \"test\", \"path\": \"/spec/service/namespace\", \"value\": \"$namespace\"},
		{\"op\": \"test\", \"path\": \"/spec/service/name\", \"value\": \"$service\"},
		{\"op\": \"replace\", \"path\": \"/spec\", \"value\": $(kept_spec "$1")},
		{\"op\": \"remove\", \"path\": \"/metadata/annotations/meshpulse.io~1replaced-spec\"}]"
}

# take_back deletes an APIService if it is ours, and only the very version that was looked at; one that was taken from another
# adapter is put back.
take_back() {
	if [ "$(owner_of "$1")" = "$namespace/$service" ]; then
		was=$(kept_spec "$1") || was=unknown
		if [ -n "$was" ]; then # not deleted in any case: nobody else has the spec
			put_back "$1" || say "WARNING: $1 still leads to meshpulse, which does not answer: run install.sh --release-apiservice"
			return 0
		fi
	fi
	state=$(kubectl get apiservice "$1" --ignore-not-found \
		-o 'jsonpath={.spec.service.namespace}/{.spec.service.name} {.metadata.resourceVersion}') || state=''
	case $state in
	"$namespace/$service "*)
		printf '{"apiVersion":"v1","kind":"DeleteOptions","preconditions":{"resourceVersion":"%s"}}' "${state##* }" |
			kubectl delete --raw "/apis/apiregistration.k8s.io/v1/apiservices/$1" -f - >/dev/null ||
			say "WARNING: $1 is still there: kubectl delete apiservice $1"
		;;
	esac
}

# compose sets $composed to a folder that kustomize renders: the base, or one with components over it.
compose() {
	composed=$here/base
	[ -n "$components$replicas" ] || return 0
	composed=$work/composed
	mkdir "$composed"
	top=$(CDPATH='' cd -- "$composed" && pwd -P | sed 's|/[^/]*|../|g')${here#/} # kustomize takes no absolute paths
	{
		printf 'resources:\n  - "%s/base"\ncomponents:\n' "$top"
		for component in $components; do printf '  - "%s/components/%s"\n' "$top" "$component"; done
		[ -z "$replicas" ] || printf '  - "%s/replicas"\n' "$top" # the last: the others change a Deployment
	} >"$composed/kustomization.yaml"
}

# warn_tag says that what a tag names can be replaced under it: by whoever may push, and the next pod runs it with our rights.
warn_tag() {
	case $image in
	*@sha256:*) ;;
	*) say "WARNING: $image has no digest: whoever can push to that registry decides what runs. make push prints the name that pins it" ;;
	esac
}

# warnings prints the namespace's of the last hour, the newest last.
warnings() {
	kubectl -n "$namespace" get events --field-selector=type=Warning --sort-by=.lastTimestamp \
		-o 'jsonpath={range .items[*]}  {.involvedObject.kind} {.involvedObject.name}: {.reason}: {.message}{"\n"}{end}'
}

deployment_ready() { kubectl -n "$namespace" rollout status deployment/meshpulse --timeout=15s; }

# replica_ready succeeds once one of several replicas is: the others warm up beside it.
replica_ready() {
	ready=$(kubectl -n "$namespace" get statefulset meshpulse -o 'jsonpath={.status.readyReplicas}') || ready=''
	[ "${ready:-0}" -ge 1 ] || { sleep 15; false; }
}

# await_pod waits for three minutes for what a function finds ready, and tells meanwhile what the cluster says of a pod that does not
# start.
await_pod() {
	told=''
	for _ in 1 2 3 4 5 6 7 8 9 10 11 12; do
		"$1" >"$work/rollout" 2>&1 && return
		newest=$(warnings | tail -n 1)
		[ "$newest" = "$told" ] || say "waiting for the pod:$newest"
		told=$newest
	done
	cat "$work/rollout"
	say "Warnings of the last hour in $namespace:"
	warnings | tail -n 5
	die "meshpulse did not become ready, so $apiservice was not touched. What it says:
  kubectl -n $namespace describe pod -l app.kubernetes.io/name=meshpulse
  kubectl -n $namespace logs -l app.kubernetes.io/name=meshpulse"
}

# replaced deletes what another way of installing has left, and its other objects.
replaced() {
	left=$(kubectl -n "$namespace" get "$1" meshpulse --ignore-not-found -o name) || return 0
	[ -n "$left" ] || return 0
	kubectl -n "$namespace" delete "$1" meshpulse
	shift
	[ $# = 0 ] || kubectl delete --ignore-not-found "$@"
}

# drop_components deletes the objects of components that were installed before, and are not now.
drop_components() {
	set --
	for file in custom-metrics/rbac fallback/rbac fallback/custom-metrics/rbac pod-monitor/rbac prometheus-api/service keda/service shadow/rbac; do
		case "$components " in *" ${file%/*} "*) ;; *) set -- "$@" -f "$here/components/$file.yaml" ;; esac
	done
	[ $# = 0 ] || kubectl delete --ignore-not-found "$@"
}

# put_authority makes the ConfigMap of the other adapter's authority, before the pod, which could not start without it.
put_authority() {
	kubectl -n "$namespace" create configmap "$1" --dry-run=client -o yaml --from-file=ca.crt="$other" >"$work/authority.yaml"
	kubectl apply -f "$work/authority.yaml"
}

install() {
	warn_tag
	look_at_apiservice
	need_fallback
	[ -z "$claim" ] || refuse_foreign
	! custom_asked || refuse_foreign_custom
	if [ -n "$fallback" ]; then
		[ -z "$claim" ] || refuse_keda
		look_at_fallback
		components="$components fallback"
		case "$components " in *" custom-metrics "*) components="$components fallback/custom-metrics" ;; esac
	fi
	[ -z "$prometheus" ] || find_prometheus
	if [ -n "$shadow" ]; then
		look_at_shadow
		components="$components shadow${shadow_ca:+ shadow/authority}"
	fi
	compose
	beside=${fallback:-$shadow}
	kubectl kustomize "$composed" >"$work/unset.yaml" # not into a pipe, which would hide its failure
	sed -e "s|image: meshpulse:unset|image: $image|" -e "s|OTHER-NAMESPACE/OTHER-SERVICE|$beside|" -e "s|OTHER-NAMESPACE|${beside%/*}|" \
		-e "s|PROMETHEUS-URL|$prometheus|" -e "s|PROMETHEUS-NAMESPACE|$prometheus_namespace|" -e "s|PROMETHEUS-PORT|$prometheus_port|" \
		"$work/unset.yaml" >"$work/base.yaml"
	look_at_secret

	if [ -n "$dry" ]; then
		kubectl apply --dry-run=client -f "$work/base.yaml"
		[ -n "$ca" ] && say "would keep the certificate in Secret $secret" || say "would make a certificate and Secret $secret"
		if [ -n "$shadow" ]; then
			say "would leave $apiservice to ${owner:-nobody}, and compare with ${shadow%:*}"
		elif [ -z "$claim" ]; then
			say "would leave $apiservice alone"
		elif [ "$owner" = "$namespace/$service" ]; then
			say "would keep $apiservice, which is meshpulse's"
		elif [ -n "$owner" ]; then
			say "would take $apiservice from $owner, and ask that for what is not meshpulse's"
		else
			say "would create $apiservice"
		fi
		! custom_asked || say "would claim $custom too, and take from ${fallback:-nobody} what it has of custom.metrics.k8s.io"
		return
	fi
	custom_asked || for name in "$older" "$custom"; do take_back "$name"; done # of an install before, that nobody would answer for

	[ -z "$replicas" ] || kubectl apply -f "$here/base/namespace.yaml"
	[ -z "$replicas" ] || make_peers
	if [ -z "$ca" ]; then # before the pod, which could not start without it
		make_serving_certificate
		kubectl apply -f "$here/base/namespace.yaml"
		secret_manifest | kubectl create -f -
		ca=$(openssl base64 -A -in "$work/ca.crt")
	fi
	[ -z "$fallback" ] || put_authority meshpulse-fallback-ca
	[ -z "$shadow_ca" ] || put_authority meshpulse-shadow-ca
	kubectl apply -f "$work/base.yaml"
	warn_expiry
	if [ -n "$replicas" ]; then
		await_pod replica_ready
		replaced deployment # its sidecars connect anew at their next flush
	else
		await_pod deployment_ready
		replaced statefulset -f "$here/replicas/poddisruptionbudget.yaml" -f "$here/replicas/service.yaml" -f "$here/replicas/rbac.yaml"
	fi
	drop_components
	own_api
	if [ -n "$claim" ]; then
		claim_api
		! custom_asked || claim_custom
		say "installed: HPAs with external metrics ask meshpulse now"
	else
		unproven=''
		say "installed, without the API: no HPA asks meshpulse"
	fi
	say "next: point sidecars at $namespace, see manifests/istio/README.md"
}

# rotate trusts the new authority before anything is served under it, and the old one until the next rotation: the pod
# reads a changed Secret only after a minute or two.
rotate() {
	look_at_apiservice
	look_at_secret
	[ -n "$ca" ] || die "there is no Secret $namespace/$secret yet: install first"
	manager=$(kubectl -n "$namespace" get secret "$secret" -o 'jsonpath={.metadata.annotations.cert-manager\.io/certificate-name}')
	[ -z "$manager" ] || die "Secret $namespace/$secret belongs to cert-manager, which renews it by itself"
	customs=''
	for name in "$custom" "$older"; do
		who=$(owner_of "$name") || die "cannot tell whose $name is, so nothing was changed: see kubectl's message above"
		[ "$who" != "$namespace/$service" ] || customs="$customs $name"
	done
	if [ -n "$dry" ]; then
		say "would replace the certificate in Secret $secret and trust its authority beside the old one in $apiservice"
		return
	fi
	printf '%s' "$ca" | openssl base64 -d -A | openssl x509 >"$work/previous.crt" # the first of them, the newest
	make_serving_certificate
	cat "$work/previous.crt" >>"$work/ca.crt"
	if [ "$owner" = "$namespace/$service" ]; then
		patch_ca "$apiservice" "$(openssl base64 -A -in "$work/ca.crt")"
	fi
	for name in $customs; do patch_ca "$name" "$(openssl base64 -A -in "$work/ca.crt")"; done
	if [ "$(owner_of "$own")" = "$namespace/$service" ]; then
		patch_ca "$own" "$(openssl base64 -A -in "$work/ca.crt")"
	fi
	secret_manifest | kubectl replace -f -
	! peers_there || rotate_peers
	say "rotated: served within about two minutes, no restart needed"
}

# release gives the APIs back to the adapter that had them, whose pods have to answer within a minute. Of custom.metrics.k8s.io it
# may have had the older version alone: the one that was made beside that goes.
release() {
	look_at_apiservice
	held=''
	for name in "$apiservice" "$older" "$custom"; do ! taken "$name" || held="$held $name"; done
	[ -n "$held" ] || [ "$owner" = "$namespace/$service" ] || die "$apiservice is served by ${owner:-nobody}, not by meshpulse. Nothing was changed."
	[ -n "$held" ] || die "$apiservice was taken from nobody, so there is nothing to put back. Nothing was changed. uninstall.sh removes it."
	for name in $held; do
		if [ -n "$dry" ]; then
			say "would put back $name: $(kept_spec "$name")"
			continue
		fi
		put_back "$name"
		kubectl wait --for=condition=Available --timeout=60s "apiservice/$name" || say "WARNING: the adapter that has $name again does not answer"
		[ "$name" != "$older" ] || taken "$custom" || take_back "$custom"
		say "released: HPAs ask $(owner_of "$name") again by $name"
	done
}

# need refuses what is no value of an option: nothing, or the next option, which would not be done then.
need() {
	case $2 in '' | -*) die "$1 needs a value" ;; esac
}

image='' components='' replicas='' mode=install dry='' claim=yes fallback='' fallback_ca='' shadow='' shadow_ca='' prometheus='' prometheus_namespace='' prometheus_port=''
while [ $# -gt 0 ]; do
	case $1 in
	--image | --component | --fallback | --fallback-ca | --shadow | --shadow-ca | --shadow-prometheus)
		need "$1" "${2-}"
		option=$1 value=$2
		shift
		;;
	--image=* | --component=* | --fallback=* | --fallback-ca=* | --shadow=* | --shadow-ca=* | --shadow-prometheus=*)
		option=${1%%=*} value=${1#*=}
		need "$option" "$value"
		;;
	*) option=$1 ;;
	esac
	case $option in
	--image) image=$value ;;
	--component)
		case $value in
		mesh-namespaces | own-namespaces | custom-metrics | prometheus-api | keda | dns | host-network | guaranteed) components="$components $value" ;;
		*) die "--component takes mesh-namespaces, own-namespaces, custom-metrics, prometheus-api, keda, dns, host-network or guaranteed, not '$value'" ;;
		esac
		;;
	--replicas) replicas=yes ;;
	--fallback | --shadow)
		case $value in
		*[!a-z0-9:/-]* | */*/* | *:*:* | *:*/* | *: | */ | /* | */:*) die "$option takes NAMESPACE/SERVICE or NAMESPACE/SERVICE:PORT, not '$value'" ;;
		"$namespace/$service" | "$namespace/$service":*) die "$option $value is meshpulse's own Service: give the other adapter's" ;;
		*/*) ;;
		*) die "$option takes NAMESPACE/SERVICE or NAMESPACE/SERVICE:PORT, not '$value'" ;;
		esac
		[ "$option" = --fallback ] && fallback=$value || shadow=$value
		;;
	--fallback-ca) fallback_ca=$value ;;
	--shadow-ca) shadow_ca=$value ;;
	--shadow-prometheus)
		# It ends up in YAML too.
		case $value in
		*[!]A-Za-z0-9._:/[~%-]*) die "--shadow-prometheus takes a URL of scheme, host, port and path alone, not '$value'" ;;
		http://[!/]* | https://[!/]*) prometheus=$value ;;
		*) die "--shadow-prometheus takes a URL such as http://prometheus.monitoring.svc:9090, not '$value'" ;;
		esac
		;;
	--no-apiservice) claim='' ;;
	--release-apiservice) mode=release ;;
	--rotate-cert) mode=rotate ;;
	--dry-run) dry=yes ;;
	-h | --help)
		usage
		exit 0
		;;
	*)
		usage >&2
		die "unknown argument $1"
		;;
	esac
	shift
done
if [ "$mode" = install ]; then
	[ -n "$image" ] || die "--image is missing: build and push one, from the top of the repository, with
  make push IMAGE=REGISTRY/meshpulse:TAG"
	# It ends up in YAML: nothing may come in that is not part of an image's name.
	case $image in *[!A-Za-z0-9._:/@-]*) die "--image $image is not the name of an image" ;; esac
	[ -n "$fallback" ] || [ -z "$fallback_ca" ] || die "--fallback-ca goes with --fallback NAMESPACE/SERVICE"
	[ -n "$shadow" ] || [ -z "$shadow_ca" ] || die "--shadow-ca goes with --shadow NAMESPACE/SERVICE"
	[ -z "$shadow" ] || [ -z "$fallback" ] || die "with --fallback meshpulse serves the HPAs, with --shadow another adapter does: give one of them"
	[ -z "$shadow" ] || [ -z "$prometheus" ] || die "--shadow and --shadow-prometheus are two to compare with: give one of them"
	[ -z "$shadow" ] || claim=''
elif [ -n "$image$components$replicas$fallback$fallback_ca$shadow$shadow_ca$prometheus" ] || [ -z "$claim" ]; then
	die "--rotate-cert and --release-apiservice go with --dry-run only"
fi
for program in kubectl openssl; do
	command -v "$program" >/dev/null || die "$program is not on the PATH"
done
work=$(mktemp -d)
unproven=''
# finish leaves nothing behind that does not answer, however the script ends.
finish() {
	for left in $unproven; do take_back "$left"; done
	rm -rf "$work"
}
trap finish EXIT
trap 'exit 1' HUP INT TERM
"$mode"

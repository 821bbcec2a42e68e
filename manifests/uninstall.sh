#!/bin/sh
# Removes meshpulse from the cluster of kubectl's current context, and the external metrics API only if it is meshpulse's: if it was
# taken from another adapter (install.sh --fallback), that has it again.
# HPAs stay; without their metric they hold their replicas.
set -eu

namespace=meshpulse-system
service=meshpulse
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)

die() {
	printf 'uninstall.sh: %s\n' "$*" >&2
	exit 1
}

dry=''
for argument; do
	case $argument in
	--dry-run) dry=yes ;;
	*)
		printf 'usage: uninstall.sh [--dry-run]\n' >&2
		[ "$argument" = -h ] || [ "$argument" = --help ] || die "unknown argument '$argument'"
		exit 0
		;;
	esac
done
command -v kubectl >/dev/null || die "kubectl is not on the PATH"

# put_back gives an APIService back to the adapter from which it was taken, and waits until that answers.
put_back() {
	if [ -n "$dry" ]; then
		printf 'would put back %s: %s\n' "$1" "$before"
		return
	fi
	kubectl patch apiservice "$1" --type=json -p "[
		{\"op\": \"test\", \"path\": \"/spec/service/namespace\", \"value\": \"$namespace\"},
		{\"op\": \"test\", \"path\": \"/spec/service/name\", \"value\": \"$service\"},
		{\"op\": \"replace\", \"path\": \"/spec\", \"value\": $before},
		{\"op\": \"remove\", \"path\": \"/metadata/annotations/meshpulse.io~1replaced-spec\"}]" ||
		die "$1 has changed in the meantime, so nothing was removed: run this again"
	kubectl wait --for=condition=Available --timeout=60s "apiservice/$1" ||
		printf 'WARNING: the adapter that has %s again does not answer\n' "$1"
	printf 'put back %s\n' "$1"
}

# take_back deletes an APIService if it is meshpulse's, and only the very version that was looked at.
take_back() {
	state=$(kubectl get apiservice "$1" --ignore-not-found \
		-o 'jsonpath={.spec.service.namespace}/{.spec.service.name} {.metadata.resourceVersion}') ||
		die "cannot tell whose $1 is, so nothing was removed: see kubectl's message above"
	case $state in
	'') printf '%s is not there\n' "$1" ;;
	"$namespace/$service "*)
		before=$(kubectl get apiservice "$1" -o 'jsonpath={.metadata.annotations.meshpulse\.io/replaced-spec}')
		if [ -n "$before" ]; then
			put_back "$1"
			return
		fi
		if [ -n "$dry" ]; then
			printf 'would delete %s\n' "$1"
			return
		fi
		# If another adapter takes it over now, the deletion is refused.
		printf '{"apiVersion":"v1","kind":"DeleteOptions","preconditions":{"resourceVersion":"%s"}}' "${state##* }" |
			kubectl delete --raw "/apis/apiregistration.k8s.io/v1/apiservices/$1" -f - >/dev/null ||
			die "$1 has changed in the meantime, so nothing was removed: run this again"
		printf 'deleted %s\n' "$1"
		;;
	*) printf 'left alone: %s is served by %s\n' "$1" "${state% *}" ;;
	esac
}

# The APIs first: one without a server behind it stalls discovery and the deletion of namespaces. The last is there if install.sh was killed.
take_back v1beta1.external.metrics.k8s.io
take_back v1beta1.custom.metrics.k8s.io # if it was taken from another adapter
take_back v1beta2.custom.metrics.k8s.io
take_back v1alpha1.meshpulse.io

set --
[ -z "$dry" ] || set -- --dry-run=client
# What components gave: the rights to read custom metrics, /metrics, and to raise targets; a binding in a namespace of yours is without effect from then on.
kubectl delete --ignore-not-found "$@" -f "$here/components/custom-metrics/rbac.yaml" -f "$here/components/fallback/rbac.yaml" \
	-f "$here/components/fallback/custom-metrics/rbac.yaml" -f "$here/components/pod-monitor/rbac.yaml" -f "$here/components/shadow/rbac.yaml" -f "$here/components/surge-action/clusterrolebinding.yaml" -f "$here/components/surge-action/role/clusterrole.yaml"
kubectl kustomize "$here/base" | kubectl delete --ignore-not-found "$@" -f -

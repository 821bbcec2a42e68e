# The closed loop on a real control plane. Included by the project's Makefile; run from the project's root.
KUBE_VERSION     := v1.37.0
LAB_BIN          := .cache/lab/bin
LAB_CONTROLPLANE := $(LAB_BIN)/controlplane-$(KUBE_VERSION)
SCENARIOS        := $(sort $(notdir $(basename $(wildcard bench/lab/scenarios/*.yaml))))
SCENARIO         ?= $(SCENARIOS)

SEED             ?= 1

.PHONY: lab lab-known lab-ci chaos attack lab-mtls lab-coexist lab-keda lab-shadow lab-seen lab-up lab-test lab-build lab-controlplane

lab: lab-known lab-build $(LAB_BIN)/podinfo ## the closed loop on a real control plane (SCENARIO=name, default all)
	@$(LAB_BIN)/lab run --root . $(SCENARIO:%=bench/lab/scenarios/%.yaml)

lab-known:
	@for s in $(SCENARIO); do test -e bench/lab/scenarios/$$s.yaml || { echo "make lab: no scenario $$s, there are: $(SCENARIOS)" >&2; exit 1; }; done

lab-ci: lab-build ## the short closed loop of .ci/run
	@$(LAB_BIN)/lab run --root . --results .cache/lab/results bench/lab/scenarios/ci/guide-rps-short.yaml

chaos: lab-build ## constant load while things go wrong (SEED=1, or several: "1 7 42"; 35 minutes each, FAULTS=100 for fewer; REPLICAS=2: two of meshpulse, 20 minutes with FAULTS=46)
	@$(LAB_BIN)/lab chaos --root . --seed "$(SEED)" $(if $(FAULTS),--faults $(FAULTS)) $(if $(REPLICAS),--replicas $(REPLICAS))

attack: lab-build ## what one sender, author or caller can do to others (16 minutes; ONLY="gzip zero": those anew; SEED=7: others together; LONG=1: at the defaults, 22 minutes)
	@$(LAB_BIN)/lab attack --root . $(if $(LONG),--long) --seed $(SEED) $(ONLY)

lab-mtls: lab-build ## sidecars that prove themselves: renewals, closes, a change of the root, an authority that is away, other identities, strict (13 minutes)
	@$(LAB_BIN)/lab mtls --root .

lab-up: lab-build ## only the control plane, until Ctrl-C
	@$(LAB_BIN)/lab up --root .

lab-test: ## vet and tests of the lab's own code, and the HPA controller's decisions as metricsapi/horizontal is tested against
	cd bench/lab && $(GO) mod tidy -diff && $(GO) vet ./... && $(GO) test -race ./...
	cd bench/lab/controlplane && CGO_ENABLED=0 $(GO) test -trimpath ./hpa # built as the control plane is, so that it is compiled once

lab-build: lab-controlplane build envoy
	@cd bench/lab && ../tools/progress $(GO) build -v -o ../../$(LAB_BIN)/lab .

# The guides' app and their load tester, from a module of their own.
$(LAB_BIN)/podinfo: bench/lab/peers/podinfo/go.mod
	@mkdir -p $(LAB_BIN)
	@cd $(<D) && CGO_ENABLED=0 ../../../tools/progress $(GO) build -v -trimpath -o ../../../../$(LAB_BIN)/ \
		github.com/rakyll/hey github.com/stefanprodan/podinfo/cmd/podinfo

lab-controlplane: $(LAB_CONTROLPLANE)

# kube-apiserver, kube-controller-manager, kubectl and etcd in one binary: some 13 CPU-minutes with a cold Go build
# cache, seconds with a warm one.
$(LAB_CONTROLPLANE): $(wildcard bench/lab/controlplane/*.go) bench/lab/controlplane/go.mod
	@echo "building the control plane $(KUBE_VERSION): about 2500 packages, 7 to 13 minutes the first time"
	@mkdir -p $(LAB_BIN)
	@cd bench/lab/controlplane && CGO_ENABLED=0 ../../tools/progress $(GO) build -v -trimpath \
		-ldflags "-s -w -X k8s.io/component-base/version.gitVersion=$(KUBE_VERSION)" -o ../../../$@ .

# The peers of the comparison, each in a module of its own: some 12 minutes with a cold Go build cache.
PROMETHEUS_VERSION := v0.313.5
KEDA_VERSION       := v2.21.0
LAB_PEERS          := $(LAB_BIN)/prometheus-$(PROMETHEUS_VERSION) $(LAB_BIN)/keda-operator-$(KEDA_VERSION) $(LAB_BIN)/keda-adapter-$(KEDA_VERSION)
VERSUS             := bench/lab/scenarios/step.yaml bench/lab/scenarios/sawtooth.yaml

.PHONY: versus versus-all plot

versus: lab-build $(LAB_PEERS) ## side by side with Prometheus and KEDA (under 60 minutes)
	@$(LAB_BIN)/lab versus --root . $(VERSUS)

versus-all: lab-build $(LAB_PEERS) ## the same in every setting (2 hours)
	@$(LAB_BIN)/lab versus --root . --all --rounds 1 $(VERSUS)

lab-coexist: lab-build $(filter-out %/prometheus-$(PROMETHEUS_VERSION),$(LAB_PEERS)) ## meshpulse and KEDA on one APIService; root (8 minutes)
	@$(LAB_BIN)/lab coexist --root .

lab-keda: lab-build $(filter-out %/prometheus-$(PROMETHEUS_VERSION),$(LAB_PEERS)) ## ScaledObjects of a real KEDA that ask meshpulse: from zero, a step, meshpulse killed, to zero; root (10 minutes)
	@$(LAB_BIN)/lab keda --root .

lab-shadow: lab-build $(LAB_PEERS) ## what meshpulse reports of its comparison with KEDA's Prometheus, beside what the lab saw; root (13 minutes)
	@$(LAB_BIN)/lab shadow --root .

lab-seen: lab-build $(LAB_BIN)/prometheus-$(PROMETHEUS_VERSION) ## alerts and events that tell of troubles, at their own times, with a real Prometheus (45 minutes, of little CPU)
	@$(LAB_BIN)/lab seen --root .

plot: ## bench/results/versus.svg anew from versus.json; versus and versus-all do it themselves
	@cd bench/lab && $(GO) run . plot

$(LAB_BIN)/prometheus-$(PROMETHEUS_VERSION): bench/lab/peers/prometheus/go.mod
	@mkdir -p $(LAB_BIN)
	@cd $(<D) && CGO_ENABLED=0 ../../../tools/progress $(GO) build -v -trimpath -tags remove_all_sd,enable_kubernetes_sd \
		-ldflags "-s -w" -o ../../../../$@ github.com/prometheus/prometheus/cmd/prometheus

$(LAB_BIN)/keda-%-$(KEDA_VERSION): bench/lab/peers/keda/go.mod
	@mkdir -p $(LAB_BIN)
	@cd $(<D) && CGO_ENABLED=0 ../../../tools/progress $(GO) build -v -trimpath -ldflags "-s -w" \
		-o ../../../../$@ github.com/kedacore/keda/v2/cmd/$*

# A real node. What of it is not Go, get-tools fetches; kubelet, kube-proxy and kube-scheduler are one more binary of the control plane's
# module, so that who runs no node builds none of it.
COREDNS_VERSION     := v1.15.0
KUBE_ROUTER_VERSION := v2.1.0
CERT_MANAGER_CRDS   := $(LAB_BIN)/cert-manager-crds.yaml
HELM_VERSION        := v4.3.0
LAB_NODE            := $(LAB_BIN)/helm-$(HELM_VERSION) $(LAB_BIN)/node-$(KUBE_VERSION) $(LAB_BIN)/coredns-$(COREDNS_VERSION) $(LAB_BIN)/kube-router-$(KUBE_ROUTER_VERSION)

# The version before this one, for lab-upgrade.
PREVIOUS            ?= $(shell git describe --tags --abbrev=0 2>/dev/null)
LAB_PREVIOUS        := .cache/lab/previous

.PHONY: lab-node lab-node-replicas lab-node-root lab-node-build lab-node-binaries lab-upgrade lab-previous

lab-node: lab-node-root lab-node-build ## the documents' way on a real node, from install.sh to uninstall.sh; root (3 to 5 minutes, once built; the first time some 20 CPU-minutes more)
	@$(LAB_BIN)/lab-node run --root .

lab-upgrade: lab-node-root lab-previous lab-node-build ## the version before, this one and back, each by its own install.sh, under load on that node; root (PREVIOUS=COMMIT, default the last tag; 5 minutes)
	@cd $(LAB_PREVIOUS) && CGO_ENABLED=0 ../../../bench/tools/progress $(GO) build -v -trimpath -buildvcs=false -ldflags "-s -w" -o meshpulse ./cmd/meshpulse
	@bin/image/image -name lab.local/meshpulse:previous -out $(LAB_PREVIOUS)/image.tar linux/$$($(GO) env GOARCH)=$(LAB_PREVIOUS)/meshpulse >/dev/null
	@$(LAB_BIN)/lab-node run --root . --only upgrade

lab-node-replicas: lab-node-root lab-node-build ## from one replica to two under load on that node, a drain, and back; root (15 minutes, five of them a replica that warms up)
	@$(LAB_BIN)/lab-node run --root . --only replicas

lab-previous: # told before anything is built
	@git rev-parse -q --verify '$(PREVIOUS)^{commit}' >/dev/null || { echo "make lab-upgrade: PREVIOUS=$(PREVIOUS) is no commit: give that of the version before, such as PREVIOUS=v1.2.3" >&2; exit 1; }
	@rm -rf $(LAB_PREVIOUS) && mkdir -p $(LAB_PREVIOUS) && git archive '$(PREVIOUS)' | tar -x -C $(LAB_PREVIOUS)

lab-node-root: # told before anything is built
	@test "$$(id -u)" = 0 || { echo "make lab-node: a node is run by root (namespaces, mounts, control groups), inside namespaces that end with it: sudo make lab-node" >&2; exit 1; }

lab-node-binaries: $(LAB_CONTROLPLANE) $(LAB_NODE) $(LAB_BIN)/podinfo $(CERT_MANAGER_CRDS)

lab-node-build: lab-node-binaries envoy
	@bench/lab/node/get-tools
	@$(MAKE) --no-print-directory image IMAGE=lab.local/meshpulse:lab PLATFORMS=linux/$$($(GO) env GOARCH)
	@cd bench/lab && CGO_ENABLED=0 ../tools/progress $(GO) build -v -trimpath -ldflags "-s -w" -o ../../$(LAB_BIN)/pod ./node/pod
	@cd bench/lab && ../tools/progress $(GO) build -v -o ../../$(LAB_BIN)/lab-node ./node

$(LAB_BIN)/node-$(KUBE_VERSION): bench/lab/controlplane/node/main.go bench/lab/controlplane/go.mod
	@mkdir -p $(LAB_BIN)
	@cd bench/lab/controlplane && CGO_ENABLED=0 ../../tools/progress $(GO) build -v -trimpath \
		-ldflags "-s -w -X k8s.io/component-base/version.gitVersion=$(KUBE_VERSION)" -o ../../../$@ ./node

# 90 CPU-seconds with a cold Go build cache.
$(LAB_BIN)/helm-$(HELM_VERSION): bench/tools/release/go.mod
	@mkdir -p $(LAB_BIN)
	@cd $(<D) && CGO_ENABLED=0 ../progress $(GO) build -v -trimpath -ldflags "-s -w" -o ../../../$@ helm.sh/helm/v4/cmd/helm

$(LAB_BIN)/coredns-$(COREDNS_VERSION): bench/lab/node/coredns/main.go bench/lab/node/coredns/go.mod
	@mkdir -p $(LAB_BIN)
	@cd $(<D) && CGO_ENABLED=0 ../../../tools/progress $(GO) build -v -trimpath -ldflags "-s -w" -o ../../../../$@ .

$(LAB_BIN)/kube-router-$(KUBE_ROUTER_VERSION): bench/lab/node/kube-router/go.mod
	@mkdir -p $(LAB_BIN)
	@cd $(<D) && CGO_ENABLED=0 ../../../tools/progress $(GO) build -v -trimpath -ldflags "-s -w" -o ../../../../$@ \
		github.com/cloudnativelabs/kube-router/v2/cmd/kube-router

# What cert-manager takes of the documents' way with it; its controllers are not built.
$(CERT_MANAGER_CRDS): bench/lab/peers/cert-manager/go.mod
	@mkdir -p $(LAB_BIN)
	@cd $(<D) && $(GO) mod download github.com/cert-manager/cert-manager
	@crds=$$(cd $(<D) && $(GO) list -m -f '{{.Dir}}' github.com/cert-manager/cert-manager)/deploy/crds && \
		cat $$crds/cert-manager.io_certificates.yaml $$crds/cert-manager.io_issuers.yaml > $@.part && mv $@.part $@

# Istio on that node: its three programs from its Go module, in a module of their own.
ISTIO_VERSION := eed52ebb66ad
LAB_ISTIO     := $(LAB_BIN)/istio-$(ISTIO_VERSION)

.PHONY: lab-istio

lab-istio: lab-node-root lab-node-build $(LAB_ISTIO)/istioctl ## a mesh of real istiod, injection and STRICT mTLS on the real node; root (15 minutes, the first time some 12 CPU-minutes more)
	@$(LAB_BIN)/lab-node run --root . --istio

# 601 CPU-seconds with a cold Go build cache.
$(LAB_ISTIO)/istioctl: bench/lab/node/istio/go.mod bench/lab/node/istio/get-contrib
	@echo "building Istio's pilot-discovery, pilot-agent and istioctl: some 10 CPU-minutes the first time"
	@bench/lab/node/istio/get-contrib
	@mkdir -p $(@D)
	@cd $(<D) && cp "$$($(GO) list -m -f '{{.Dir}}' istio.io/istio)/tools/packaging/common/envoy_bootstrap.json" ../../../../$(@D)/envoy_bootstrap_tmpl.json
	@cd $(<D) && CGO_ENABLED=0 ../../../tools/progress $(GO) build -v -trimpath \
		-ldflags "-s -w $(foreach v,buildVersion=1.31-lab buildTag=lab buildHub=lab.local,-X istio.io/istio/pkg/version.$(v))" -o ../../../../$(@D)/ \
		istio.io/istio/pilot/cmd/pilot-discovery istio.io/istio/pilot/cmd/pilot-agent istio.io/istio/istioctl/cmd/istioctl

package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"github.com/meshpulse/meshpulse/bench/documents"
)

// certManagerCRDs are cert-manager's own, as its Go module has them. Its controllers are not run
// here.
const certManagerCRDs = "cert-manager-crds.yaml"

// certManager has the API server look, field by field, at what the documents' way with cert-manager
// would apply.
func (n *node) certManager(ctx context.Context) (err error) {
	readme, err := os.ReadFile(filepath.Join(n.root, "manifests", "README.md"))
	if err != nil {
		return err
	}
	kustomization, found := documents.Fenced(string(readme), "components/cert-manager")
	if !found {
		return errors.New("manifests/README.md has no kustomization with components/cert-manager")
	}
	kustomization = strings.NewReplacer("REGISTRY", "lab.local", "newTag: TAG", "newTag: lab").Replace(kustomization)
	folder := filepath.Join(n.state, "cert-manager")
	beside := filepath.Join(folder, "overlay")
	if err := errors.Join(os.MkdirAll(beside, 0o755), os.CopyFS(filepath.Join(folder, "manifests"), os.DirFS(filepath.Join(n.root, "manifests"))),
		os.WriteFile(filepath.Join(beside, "kustomization.yaml"), []byte(kustomization), 0o644)); err != nil {
		return err
	}
	if _, err := n.kubectl(ctx, "create", "--filename="+n.binary(certManagerCRDs)); err != nil {
		return err
	}
	defer func() {
		_, e := n.kubectl(ctx, "delete", "--filename="+n.binary(certManagerCRDs))
		err = errors.Join(err, e)
	}()
	if _, err := n.kubectl(ctx, "wait", "--for=condition=Established", "--timeout=50s", "--filename="+n.binary(certManagerCRDs)); err != nil {
		return err
	}
	_, err = n.kubectl(ctx, "apply", "--dry-run=server", "--validate=strict", "--kustomize="+beside)
	return err
}

package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"

	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

// overlay is what is rendered: the base with what it is complete with and needs no script for.
const overlay = `resources: ["%[1]s/base"]
components: ["%[1]s/components/apiservice", "%[1]s/components/own-api", "%[1]s/components/cert-manager"]
labels: [{pairs: {app.kubernetes.io/version: "%[2]s"}, includeTemplates: true}]
`

const installHeader = `# meshpulse %s, for a cluster with cert-manager: kubectl apply -f does it. It claims external.metrics.k8s.io; whose that
# is now, "kubectl get apiservice v1beta1.external.metrics.k8s.io" tells, and it must be nobody's.
`

// writeInstall writes the manifests as one file.
func (r release) writeInstall() error {
	rendered, err := r.render()
	if err != nil {
		return fmt.Errorf("render the manifests: %w", err)
	}
	const unset = "image: meshpulse:unset\n"
	if bytes.Count(rendered, []byte(unset)) != 1 {
		return fmt.Errorf("the manifests have no single %q", unset)
	}
	rendered = bytes.Replace(rendered, []byte(unset), []byte("image: "+r.image+"\n"), 1)
	return os.WriteFile(r.file("-install.yaml"), append(fmt.Appendf(nil, installHeader, r.version), rendered...), 0o644)
}

// render renders the overlay in a folder of its own, by a relative path: Kustomize takes no
// absolute one.
func (r release) render() ([]byte, error) {
	folder, err := os.MkdirTemp("", "release")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(folder) }()
	if folder, err = filepath.EvalSymlinks(folder); err != nil {
		return nil, err
	}
	manifests, err := filepath.Abs(filepath.Join(r.root, "manifests"))
	if err != nil {
		return nil, err
	}
	up, err := filepath.Rel(folder, manifests)
	if err != nil {
		return nil, err
	}
	text := fmt.Appendf(nil, overlay, up, r.version)
	if err := os.WriteFile(filepath.Join(folder, "kustomization.yaml"), text, 0o600); err != nil {
		return nil, err
	}
	resources, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), folder)
	if err != nil {
		return nil, err
	}
	return resources.AsYaml()
}

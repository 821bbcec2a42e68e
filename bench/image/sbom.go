package main

import (
	"cmp"
	"debug/buildinfo"
	"encoding/json"
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"strings"
)

// bom is a bill of materials in CycloneDX 1.6's JSON, the few fields that a static binary can tell
// of itself. It has neither a serial number nor a time, which would make other bytes of the same
// binary.
type bom struct {
	Format     string      `json:"bomFormat"`
	Spec       string      `json:"specVersion"`
	Version    int         `json:"version"`
	Metadata   metadata    `json:"metadata"`
	Components []component `json:"components"`
}

type metadata struct {
	Component component `json:"component"`
}

type component struct {
	Type    string `json:"type"`
	Ref     string `json:"bom-ref"`
	Name    string `json:"name"`
	Version string `json:"version"`
	PURL    string `json:"purl"`
}

// writeBOM writes what the binary was built of, by the module list that Go has left in it: the
// image holds nothing else but two files of names.
func writeBOM(file, binary, version string) error {
	info, err := buildinfo.ReadFile(binary)
	if err != nil {
		return fmt.Errorf("%s tells no modules: %w", binary, err)
	}
	content, err := json.MarshalIndent(newBOM(info, version), "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(content, '\n'), 0o644)
}

func newBOM(info *debug.BuildInfo, version string) bom {
	b := bom{
		Format: "CycloneDX", Spec: "1.6", Version: 1,
		Metadata:   metadata{moduleOf("application", info.Main.Path, version)},
		Components: []component{moduleOf("library", "stdlib", strings.TrimPrefix(info.GoVersion, "go"))},
	}
	for _, module := range info.Deps {
		if module.Replace != nil {
			module = module.Replace
		}
		b.Components = append(b.Components, moduleOf("library", module.Path, module.Version))
	}
	slices.SortFunc(b.Components, func(a, b component) int { return cmp.Compare(a.PURL, b.PURL) })
	return b
}

func moduleOf(kind, path, version string) component {
	purl := "pkg:golang/" + strings.ToLower(path) + "@" + strings.ReplaceAll(version, "+", "%2B")
	return component{Type: kind, Ref: purl, Name: path, Version: version, PURL: purl}
}

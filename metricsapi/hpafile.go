package metricsapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// fileError is a file that cannot be read as Kubernetes objects.
type fileError struct {
	line int // 1 is the first
	err  error
}

func (e *fileError) Error() string { return fmt.Sprintf("line %d: %v", e.line, e.err) }
func (e *fileError) Unwrap() error { return e.err }

// document is one object of a file, in JSON.
type document struct {
	line int
	json []byte
}

// readHPAFile reads the HPAs of a YAML file of any number of documents, or of JSON. Other kinds are named in ignored. It is all
// or nothing: a *fileError says where reading failed.
func readHPAFile(path string, data []byte) (hpas []sourceHPA, ignored []string, err error) {
	split := splitYAML
	if strings.HasSuffix(path, ".json") {
		split = splitJSON
	}
	docs, err := split(data)
	if err != nil {
		return nil, nil, err
	}
	for len(docs) > 0 {
		d := docs[0]
		docs = docs[1:]
		var object struct {
			metav1.TypeMeta
			Items []json.RawMessage `json:"items"`
		}
		if err := json.Unmarshal(d.json, &object); err != nil {
			return nil, nil, &fileError{d.line, fmt.Errorf("not a Kubernetes object: %w", err)}
		}
		switch {
		case object.Kind == "List", object.Kind == "HorizontalPodAutoscalerList":
			items := make([]document, len(object.Items))
			for i, item := range object.Items {
				items[i] = document{d.line, item}
			}
			docs = append(items, docs...)
		case object.Kind != "HorizontalPodAutoscaler":
			ignored = append(ignored, strings.TrimSpace(object.APIVersion+" "+object.Kind))
		default:
			h, err := decodeHPA(object.APIVersion, d.json)
			if err != nil {
				return nil, nil, &fileError{d.line, err}
			}
			h.path, h.doc = path, len(hpas)
			hpas = append(hpas, h)
		}
	}
	return hpas, ignored, nil
}

// checkAnnotations names the annotations whose value is not text, which the decoders' own error does not: YAML reads a bare off as
// false and a bare 1.5 as a number. Nothing at all is the empty text, as an API server has it.
func checkAnnotations(data []byte) error {
	var object struct {
		Metadata struct {
			Name        string                     `json:"name"`
			Annotations map[string]json.RawMessage `json:"annotations"`
		} `json:"metadata"`
	}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(data, &object); err != nil {
		return nil // the decoder of the version says it better
	}
	var errs []error
	for _, key := range slices.Sorted(maps.Keys(object.Metadata.Annotations)) {
		switch value := object.Metadata.Annotations[key]; {
		case value[0] == '"', string(value) == "null":
		case string(value) == "true", string(value) == "false":
			errs = append(errs, fmt.Errorf("annotation %s is not text, YAML reads it as %s: quote its value, as in \"on\" or \"off\"", key, value))
		case value[0] == '{', value[0] == '[':
			errs = append(errs, fmt.Errorf("annotation %s is not text but a map or a list: quote its value", key))
		default:
			errs = append(errs, fmt.Errorf("annotation %s is not text but a number: quote its value, as in \"%s\"", key, value))
		}
	}
	if len(errs) > 0 {
		return fmt.Errorf("HorizontalPodAutoscaler %s: %w", object.Metadata.Name, errors.Join(errs...))
	}
	return nil
}

// decodeHPA reads an HPA of any version that can hold an external metric.
func decodeHPA(version string, data []byte) (sourceHPA, error) {
	var h sourceHPA
	err := checkAnnotations(data)
	if err != nil {
		return h, err
	}
	switch version {
	case "autoscaling/v2":
		h.HorizontalPodAutoscaler, err = decodeV2(data)
	case "autoscaling/v2beta2":
		h.HorizontalPodAutoscaler, err = decodeV2(data)
		h.problems = []Problem{{ReasonOldVersion, "autoscaling/v2beta2 is gone since Kubernetes 1.26. Write apiVersion: autoscaling/v2, the rest stays as it is"}}
	case "autoscaling/v2beta1":
		var converted string
		h.HorizontalPodAutoscaler, converted, err = decodeV2beta1(data)
		h.problems = []Problem{{ReasonOldVersion, "autoscaling/v2beta1 is gone since Kubernetes 1.25. Write apiVersion: autoscaling/v2, and as spec.metrics:\n" + converted}}
	default:
		return h, fmt.Errorf("a HorizontalPodAutoscaler of version %q: write autoscaling/v2", version)
	}
	if err != nil {
		return h, fmt.Errorf("not a HorizontalPodAutoscaler: %w", err)
	}
	h.TypeMeta = metav1.TypeMeta{APIVersion: "autoscaling/v2", Kind: "HorizontalPodAutoscaler"}
	if h.Namespace == "" {
		h.Namespace = metav1.NamespaceDefault
	}
	switch {
	case h.Name == "":
		return h, errors.New("a HorizontalPodAutoscaler without metadata.name")
	case h.Spec.MaxReplicas < 1:
		return h, fmt.Errorf("HorizontalPodAutoscaler %s: spec.maxReplicas is %d, it must be 1 or more", h.Name, h.Spec.MaxReplicas)
	}
	if version != "autoscaling/v2beta1" {
		var strict autoscalingv2.HorizontalPodAutoscaler
		if unknown, err := kjson.UnmarshalStrict(data, &strict); err == nil && len(unknown) > 0 {
			h.problems = append(h.problems, Problem{ReasonUnknownField, fmt.Sprintf("a field is not known and has no effect: %v", errors.Join(unknown...))})
		}
	}
	return h, nil
}

func decodeV2(data []byte) (*autoscalingv2.HorizontalPodAutoscaler, error) {
	h := &autoscalingv2.HorizontalPodAutoscaler{}
	return h, kjson.UnmarshalCaseSensitivePreserveInts(data, h) // as an API server reads it
}

// splitYAML splits at lines that start with "---", which are a document's start wherever they stand, and converts each document
// to JSON. Empty documents are left out.
func splitYAML(data []byte) ([]document, error) {
	var docs []document
	line, start := 1, 1
	var text []byte
	flush := func() error {
		if len(bytes.TrimSpace(text)) == 0 {
			return nil
		}
		converted, err := yaml.YAMLToJSONStrict(text)
		if err != nil {
			return yamlError(start, line-1, err)
		}
		if string(converted) != "null" {
			docs = append(docs, document{start, converted})
		}
		return nil
	}
	for l := range bytes.Lines(data) {
		if marker := bytes.TrimRight(l, " \t\r\n"); string(marker) == "---" || bytes.HasPrefix(l, []byte("--- ")) {
			if err := flush(); err != nil {
				return nil, err
			}
			text, start = nil, line
		}
		text = append(text, l...)
		line++
	}
	if err := flush(); err != nil {
		return nil, err
	}
	return docs, nil
}

// yamlLine is where the YAML library says that it stopped, counted from its document's first line; it may be past the last.
var yamlLine = regexp.MustCompile(`line (\d+): `)

func yamlError(start, last int, err error) error {
	line := start
	text := err.Error()
	if m := yamlLine.FindStringSubmatchIndex(text); m != nil {
		n, _ := strconv.Atoi(text[m[2]:m[3]]) // digits; beyond int it stays at the document's start
		line = min(start+max(n-1, 0), last)
		text = text[:m[0]] + text[m[1]:]
	}
	return &fileError{line, errors.New(text)}
}

// splitJSON reads one JSON value after the other.
func splitJSON(data []byte) ([]document, error) {
	lineAt := func(offset int64) int {
		return 1 + bytes.Count(data[:min(max(offset, 0), int64(len(data)))], []byte("\n"))
	}
	var docs []document
	decoder := json.NewDecoder(bytes.NewReader(data))
	for {
		start := decoder.InputOffset()
		var raw json.RawMessage
		err := decoder.Decode(&raw)
		if errors.Is(err, io.EOF) {
			return docs, nil
		}
		if err != nil {
			at := start
			if syntax := (*json.SyntaxError)(nil); errors.As(err, &syntax) {
				at = syntax.Offset
			}
			return nil, &fileError{lineAt(at), fmt.Errorf("not JSON: %w", err)}
		}
		docs = append(docs, document{lineAt(decoder.InputOffset() - int64(len(raw))), raw})
	}
}

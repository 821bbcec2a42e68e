package hpas

import (
	"bytes"
	"cmp"
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
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// FileError is a document of a file that cannot be read, or be served.
type FileError struct {
	Line int // 1 is the first
	Err  error
}

func (e *FileError) Error() string { return fmt.Sprintf("line %d: %v", e.Line, e.Err) }
func (e *FileError) Unwrap() error { return e.Err }

// document is one object of a file, in JSON.
type document struct {
	line int
	json []byte
	of   metav1.TypeMeta // what it is where it does not say so itself
}

// File is what a file holds.
type File struct {
	HPAs    []HPA
	Ignored []string // the kinds of other objects
	// Refused are the documents that cannot be read or served. They take none of the others with
	// them.
	Refused []*FileError
}

func (c *File) refuse(line int, err error) {
	c.Refused = append(c.Refused, &FileError{line, err})
}

// Decode reads the HPAs of a YAML file of any number of documents, or of JSON.
func Decode(path string, data []byte) (c File) {
	c.each(path, data, func(kind metav1.TypeMeta, d document) {
		if kind.Kind != "HorizontalPodAutoscaler" {
			c.Ignored = append(c.Ignored, strings.TrimSpace(kind.APIVersion+" "+kind.Kind))
			return
		}
		h, err := decodeHPA(kind.APIVersion, d.json)
		if err != nil {
			c.refuse(d.line, err)
			return
		}
		h.Path, h.Place = path, len(c.HPAs)
		c.HPAs = append(c.HPAs, h)
	})
	return c
}

// each calls what is to be done with the objects of a file, those of lists one by one, and refuses
// what is none. Items of a list as an API server gives it are of the list's kind.
func (c *File) each(path string, data []byte, do func(metav1.TypeMeta, document)) {
	split := splitYAML
	if strings.HasSuffix(path, ".json") || json.Valid(data) {
		split = splitJSON
	}
	docs := split(data, c)
	for len(docs) > 0 {
		d := docs[0]
		docs = docs[1:]
		var object struct {
			metav1.TypeMeta
			Items []json.RawMessage `json:"items"`
		}
		if err := json.Unmarshal(d.json, &object); err != nil {
			c.refuse(d.line, fmt.Errorf("not a Kubernetes object: %w", err))
			continue
		}
		if object.Kind == "" {
			object.TypeMeta = d.of
		}
		kind, list := strings.CutSuffix(object.Kind, "List")
		if !list || object.Items == nil {
			do(object.TypeMeta, d)
			continue
		}
		items := make([]document, len(object.Items))
		for i, item := range object.Items {
			items[i] = document{d.line, item, metav1.TypeMeta{APIVersion: object.APIVersion, Kind: kind}}
		}
		docs = append(items, docs...)
	}
}

// checkAnnotations names the annotations whose value is not text, which the decoders' own error
// does not: YAML reads a bare off as false and a bare 1.5 as a number. Nothing at all is the empty
// text, as an API server has it.
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

// decodeHPA reads an HPA of any version.
func decodeHPA(version string, data []byte) (HPA, error) {
	var h HPA
	err := checkAnnotations(data)
	if err != nil {
		return h, err
	}
	switch version {
	case "autoscaling/v2":
		h.HorizontalPodAutoscaler, err = decodeV2(data)
	case "autoscaling/v1":
		h.HorizontalPodAutoscaler, err = decodeV1(data)
	case "autoscaling/v2beta2":
		h.HorizontalPodAutoscaler, err = decodeV2(data)
		h.Problems = []Problem{{ReasonOldVersion, "autoscaling/v2beta2 is gone since Kubernetes 1.26. Write apiVersion: autoscaling/v2, the rest stays as it is"}}
	case "autoscaling/v2beta1":
		var converted string
		h.HorizontalPodAutoscaler, converted, err = decodeV2beta1(data)
		others := ""
		if err == nil && slices.ContainsFunc(h.Spec.Metrics, func(m autoscalingv2.MetricSpec) bool { return m.Pods != nil || m.Object != nil }) {
			others = "Pods and Object metrics are written as their own events say. "
		}
		h.Problems = []Problem{{ReasonOldVersion, "autoscaling/v2beta1 is gone since Kubernetes 1.25. " + others + "Write apiVersion: autoscaling/v2, and as spec.metrics:\n" + converted}}
	default:
		return h, fmt.Errorf("a HorizontalPodAutoscaler of version %q: write autoscaling/v2", version)
	}
	if err != nil {
		return h, fmt.Errorf("not a HorizontalPodAutoscaler: %w", cmp.Or(badQuantities(data), err))
	}
	h.TypeMeta = metav1.TypeMeta{APIVersion: "autoscaling/v2", Kind: "HorizontalPodAutoscaler"}
	if h.Namespace == "" {
		h.Namespace = metav1.NamespaceDefault
	}
	unknown := ""
	if version == "autoscaling/v2" || version == "autoscaling/v2beta2" {
		var strict autoscalingv2.HorizontalPodAutoscaler
		if fields, err := kjson.UnmarshalStrict(data, &strict); err == nil && len(fields) > 0 {
			unknown = fmt.Sprintf("a field is not known and has no effect: %v", errors.Join(fields...))
			h.Problems = append(h.Problems, Problem{ReasonUnknownField, unknown})
		}
	}
	err = checkSpec(h)
	if err != nil && unknown != "" { // misspelt, it may be what is missing
		err = fmt.Errorf("%w; %s", err, unknown)
	}
	return h, err
}

// checkSpec says what an API server would refuse of an HPA, but for its metrics
// (Wants.checkType, Wants.checkTarget).
func checkSpec(h HPA) error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("HorizontalPodAutoscaler %s: %w", h.Name, fmt.Errorf(format, args...))
	}
	spec := h.Spec
	switch {
	case h.Name == "":
		return errors.New("a HorizontalPodAutoscaler without metadata.name")
	case spec.MaxReplicas < 1:
		return bad("spec.maxReplicas is %d, it must be 1 or more", spec.MaxReplicas)
	case spec.MinReplicas != nil && *spec.MinReplicas < 0:
		return bad("spec.minReplicas is %d, it must be 0 or more", *spec.MinReplicas)
	case spec.MinReplicas != nil && *spec.MinReplicas > spec.MaxReplicas:
		return bad("spec.minReplicas is %d, it must not be above spec.maxReplicas, which is %d: lower the one or raise the other", *spec.MinReplicas, spec.MaxReplicas)
	case spec.ScaleTargetRef.Kind == "" || spec.ScaleTargetRef.Name == "":
		return bad("spec.scaleTargetRef lacks kind or name: name what is scaled, as in {apiVersion: apps/v1, kind: Deployment, name: podinfo}")
	}
	return nil
}

// badQuantities names the quantities of an HPA's metrics that are none, which the decoders' own
// error does not; nil where all are.
func badQuantities(data []byte) error {
	var object struct {
		Spec struct {
			Metrics any `json:"metrics"`
		} `json:"spec"`
	}
	if err := json.Unmarshal(data, &object); err != nil {
		return nil // the decoder of the version says it better
	}
	var errs []error
	var look func(path, key string, v any)
	look = func(path, key string, v any) {
		switch v := v.(type) {
		case map[string]any:
			for _, key := range slices.Sorted(maps.Keys(v)) {
				look(path+"."+key, key, v[key])
			}
		case []any:
			for i, item := range v {
				look(fmt.Sprintf("%s[%d]", path, i), "", item)
			}
		case string:
			switch key {
			case "value", "averageValue", "targetValue", "targetAverageValue":
				if _, err := resource.ParseQuantity(v); err != nil {
					errs = append(errs, fmt.Errorf("%s: %q is not a quantity: write a number such as \"10\", or of thousandths \"500m\"", path, v))
				}
			}
		}
	}
	look("spec.metrics", "", object.Spec.Metrics)
	return errors.Join(errs...)
}

func decodeV2(data []byte) (*autoscalingv2.HorizontalPodAutoscaler, error) {
	h := &autoscalingv2.HorizontalPodAutoscaler{}
	return h, kjson.UnmarshalCaseSensitivePreserveInts(data, h) // as an API server reads it
}

// splitYAML splits at lines that start with "---", which are a document's start wherever they
// stand, and converts each document to JSON. Empty documents are left out, and those that are no
// YAML refused.
func splitYAML(data []byte, c *File) (docs []document) {
	line, start := 1, 1
	var text []byte
	flush := func() {
		if len(bytes.TrimSpace(text)) == 0 {
			return
		}
		switch converted, err := yaml.YAMLToJSONStrict(text); {
		case err != nil:
			c.refuse(yamlError(start, line-1, err))
		case string(converted) != "null":
			docs = append(docs, document{line: start, json: converted})
		}
	}
	for l := range bytes.Lines(data) {
		if marker := bytes.TrimRight(l, " \t\r\n"); string(marker) == "---" || bytes.HasPrefix(l, []byte("--- ")) {
			flush()
			text, start = nil, line
		}
		text = append(text, l...)
		line++
	}
	flush()
	return docs
}

// yamlLine is where the YAML library says that it stopped, counted from its document's first line;
// it may be past the last.
var yamlLine = regexp.MustCompile(`line (\d+): `)

func yamlError(start, last int, err error) (line int, plain error) {
	line = start
	text := err.Error()
	if m := yamlLine.FindStringSubmatchIndex(text); m != nil {
		n, _ := strconv.Atoi(text[m[2]:m[3]]) // digits; beyond int it stays at the document's start
		line = min(start+max(n-1, 0), last)
		text = text[:m[0]] + text[m[1]:]
	}
	return line, errors.New(text)
}

// splitJSON reads one JSON value after the other. What comes after one that is no JSON cannot be
// told.
func splitJSON(data []byte, c *File) (docs []document) {
	lineAt := func(offset int64) int {
		return 1 + bytes.Count(data[:min(max(offset, 0), int64(len(data)))], []byte("\n"))
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	for {
		start := decoder.InputOffset()
		var raw json.RawMessage
		err := decoder.Decode(&raw)
		if errors.Is(err, io.EOF) {
			return docs
		}
		if err != nil {
			at := start
			if syntax := (*json.SyntaxError)(nil); errors.As(err, &syntax) {
				at = syntax.Offset
			}
			c.refuse(lineAt(at), fmt.Errorf("not JSON: %w", err))
			return docs
		}
		docs = append(docs, document{line: lineAt(decoder.InputOffset() - int64(len(raw))), json: raw})
	}
}

package documents

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCommandsAreReadHoweverTheyAreWritten(t *testing.T) {
	const document = `# Title

Words with ` + "`kubectl -n test\nget pods`, `kubectl` and `install.sh --rotate-cert`" + `; ` + "`uninstall.sh`" + ` is a name.

    kubectl apply -f a.yaml   # the first
    manifests/install.sh \
      --image X

    make build

| what | look |
|---|---|
| a | ` + "`kubectl describe hpa`" + ` |
| b | ` + "`kubectl get a \\| grep b`" + ` |

` + "```sh\n# said\n$ kubectl get b\n\ncurl x\n```\n```yaml\nkubectl: no\n```" + `

    apiVersion: v1

<!-- not run: wants a registry -->
    kubectl get c

    kubectl get d
<!-- not run: a mention -->
Say ` + "`kubectl apply -k`" + `
and ` + "`helm install x`" + `.

- an item
    with a line below it that is no code
- ` + "`istioctl version`" + `
`
	want := []Block{
		{Line: 3, Commands: []Command{{Text: "kubectl -n test get pods"}}},
		{Line: 3, Commands: []Command{{Text: "manifests/install.sh --rotate-cert"}}},
		{Line: 6, Commands: []Command{{"kubectl apply -f a.yaml", "the first"}, {Text: "manifests/install.sh --image X"}}},
		{Line: 10, Commands: []Command{{Text: "make build"}}},
		{Line: 14, Commands: []Command{{Text: "kubectl describe hpa"}}},
		{Line: 15, Commands: []Command{{Text: "kubectl get a | grep b"}}},
		{Line: 18, Commands: []Command{{Text: "kubectl get b"}, {Text: "curl x"}}},
		{Line: 30, Excuse: "wants a registry", Commands: []Command{{Text: "kubectl get c"}}},
		{Line: 32, Commands: []Command{{Text: "kubectl get d"}}},
		{Line: 34, Excuse: "a mention", Commands: []Command{{Text: "kubectl apply -k"}}},
		{Line: 34, Excuse: "a mention", Commands: []Command{{Text: "helm install x"}}},
		{Line: 39, Commands: []Command{{Text: "istioctl version"}}},
	}
	if diff := cmp.Diff(want, Parse(document)); diff != "" {
		t.Error(diff)
	}
}

func TestReadGivesWhatIsForAClusterOfAllDocuments(t *testing.T) {
	root := t.TempDir()
	for name, text := range map[string]string{
		"README.md": "    make build\n\n    kubectl get a\n", "a/b/GUIDE.md": "`helm install x`", "a/main.go": "`helm install y`",
		"bench/results/lab.md": "`kubectl get results`", ".cache/x.md": "`kubectl get cached`", "a/testdata/x.md": "`kubectl get data`",
	} {
		file := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := Read(root)
	if err != nil {
		t.Fatal(err)
	}
	want := []Block{
		{File: "README.md", Line: 3, Commands: []Command{{Text: "kubectl get a"}}},
		{File: "a/b/GUIDE.md", Line: 1, Commands: []Command{{Text: "helm install x"}}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestTheDocumentsCommandsAreWhole: whoever types it is told of what is missing
// alone, and a node to find that out on is not always there.
func TestTheDocumentsCommandsAreWhole(t *testing.T) {
	blocks, err := Read("../..")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"--raw", "-n", "--namespace", "-o", "--output", "-l", "--selector", "-f", "--filename", "-k", "--component", "--image", "--set"}
	seen := 0
	for _, b := range blocks {
		for _, c := range b.Commands {
			seen++
			words := strings.Fields(c.Text)
			if slices.Contains(want, words[len(words)-1]) {
				t.Errorf("%s: %q ends in a flag without its value", b, c.Text)
			}
			alone := !slices.ContainsFunc(words[1:], func(w string) bool {
				return slices.Contains([]string{"--image", "--component", "--rotate-cert"}, w)
			})
			if b.Excuse == "" && strings.HasSuffix(words[0], "/install.sh") && alone {
				t.Errorf("%s: %q ends with an error as it stands: name the flag of install.sh in words, or give all of the command", b, c.Text)
			}
		}
	}
	if seen == 0 {
		t.Error("no command was read")
	}
}

func TestWhatIsLeftToTheReaderIsAnError(t *testing.T) {
	got, err := Fill("kubectl -n NAMESPACE get METRIC", "NAMESPACE", "test", "METRIC", "HPAS")
	if err != nil || got != "kubectl -n test get HPAS" {
		t.Errorf("%q, %v", got, err)
	}
	for _, text := range []string{"kubectl get POD", "make push IMAGE", "kubectl get a@sha256:…"} {
		if _, err := Fill(text, "NAMESPACE", "test"); err == nil || !strings.Contains(err.Error(), "stands for") {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestABlockOfAnotherKindIsFoundByItsText(t *testing.T) {
	const document = "x\n```sh\na\n```\n\n```yaml\nb: 1\nc: 2\n```\n"
	if got, found := Fenced(document, "c: 2"); !found || got != "b: 1\nc: 2\n" {
		t.Errorf("%q, %v", got, found)
	}
	if got, found := Fenced(document, "x"); found {
		t.Errorf("%q", got)
	}
}

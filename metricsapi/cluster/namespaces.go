package cluster

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

// ReadableBy is the annotation of a namespace that says whose queries read its series beside its
// own: names of namespaces with commas between them, or * for all. It is no label, whose value may
// have neither comma nor star.
const ReadableBy = "meshpulse.io/readable-by"

// Namespaces knows which namespaces let whose queries read their series, and what they say of who
// serves their HPAs, through an informer. It is safe for concurrent use.
type Namespaces struct {
	contain  Contain
	log      *slog.Logger
	informer cache.SharedIndexInformer
	read     cache.ResourceEventHandlerRegistration
	fresh    *Freshness
	changed  func() // is told of each change of what MayRead says

	mu      sync.RWMutex
	readers map[string][]string // by the namespace that is read, of those that let any
	serve   map[string]string   // its annotation [hpas.Serve], of those that have one
	changes map[string]uint64   // by reader
	all     uint64              // of what everybody may read
}

// everybody stands for all namespaces.
const everybody = "*"

// NewNamespaces returns the cluster's namespaces, which are known once Run has read them. The error
// is the informer's.
func NewNamespaces(client kubernetes.Interface, changed func(), contain Contain, log *slog.Logger, now func() time.Time) (*Namespaces, error) {
	n := &Namespaces{
		contain: contain, log: log, changed: changed, fresh: NewFreshness("namespaces", now),
		readers: map[string][]string{}, serve: map[string]string{}, changes: map[string]uint64{},
	}
	namespaces := client.CoreV1().Namespaces()
	source := n.fresh.Follow(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return namespaces.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return namespaces.Watch(ctx, o)
		},
	})
	n.informer = cache.NewSharedIndexInformer(cache.ToListWatcherWithWatchListSemantics(source, client), &corev1.Namespace{}, 0, cache.Indexers{})
	if err := n.informer.SetTransform(keepAnnotations); err != nil {
		return nil, err
	}
	var err error
	n.read, err = n.informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { n.take(o) },
		UpdateFunc: func(_, o any) { n.take(o) },
		DeleteFunc: func(o any) {
			if unknown, ok := o.(cache.DeletedFinalStateUnknown); ok {
				o = unknown.Obj
			}
			if of, ok := o.(*corev1.Namespace); ok {
				n.take(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: of.Name}})
			}
		},
	})
	return n, err
}

// keepAnnotations drops all of a namespace that is never read.
func keepAnnotations(o any) (any, error) {
	of, ok := o.(*corev1.Namespace)
	if !ok {
		return o, nil
	}
	kept := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: of.Name, ResourceVersion: of.ResourceVersion}}
	for _, name := range []string{ReadableBy, hpas.Serve} {
		if value, ok := of.Annotations[name]; ok {
			metav1.SetMetaDataAnnotation(&kept.ObjectMeta, name, value)
		}
	}
	return kept, nil
}

func (n *Namespaces) take(o any) {
	n.contain.run("namespaces", "a change", func() {
		of, ok := o.(*corev1.Namespace)
		if !ok {
			return
		}
		lets := n.let(of.Name, n.parse(of.Name, of.Annotations[ReadableBy]))
		if serves := n.setServe(of.Name, of.Annotations[hpas.Serve]); lets || serves {
			n.changed()
		}
	})
}

// setServe notes what a namespace says of its HPAs, and reports whether that has changed.
func (n *Namespaces) setServe(namespace, value string) bool {
	if value != "" && value != "true" && value != "false" {
		n.log.Warn("a namespace says neither true nor false", "annotation", hpas.Serve, "namespace", namespace, "value", value)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.serve[namespace] == value {
		return false
	}
	if n.serve[namespace] = value; value == "" {
		delete(n.serve, namespace)
	}
	return true
}

// Serve is the annotation [hpas.Serve] of a namespace, "" where it has none.
func (n *Namespaces) Serve(namespace string) string {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.serve[namespace]
}

// parse returns whom the annotation names, sorted. A name that cannot be a namespace's lets nobody.
func (n *Namespaces) parse(namespace, by string) (readers []string) {
	for name := range strings.SplitSeq(by, ",") {
		switch name = strings.TrimSpace(name); {
		case name == "":
		case name != everybody && len(validation.IsDNS1123Label(name)) > 0:
			n.log.Warn("a namespace is read by nobody of that name: give namespaces with commas between them, or *", "annotation", ReadableBy, "namespace", namespace, "name", name)
		default:
			readers = append(readers, name)
		}
	}
	slices.Sort(readers)
	return slices.Compact(readers)
}

// let notes who may read a namespace, and reports whether that has changed.
func (n *Namespaces) let(namespace string, readers []string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	was := n.readers[namespace]
	if slices.Equal(was, readers) {
		return false
	}
	if n.readers[namespace] = readers; len(readers) == 0 {
		delete(n.readers, namespace)
	}
	if slices.Contains(was, everybody) != slices.Contains(readers, everybody) {
		n.all++
		return true
	}
	for _, name := range slices.Concat(was, readers) {
		if slices.Contains(was, name) != slices.Contains(readers, name) {
			n.changes[name]++
		}
	}
	return true
}

// MayRead reports whether a namespace lets the queries of another one read its series. Until the
// namespaces are known, and while they are not, none does but those that are known to.
func (n *Namespaces) MayRead(author, namespace string) bool {
	n.mu.RLock()
	defer n.mu.RUnlock()
	readers := n.readers[namespace]
	return slices.Contains(readers, author) || slices.Contains(readers, everybody)
}

// Changes is how often what the queries of a namespace may read has changed so far.
func (n *Namespaces) Changes(author string) uint64 {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.changes[author] + n.all
}

// Run keeps them in step with the API server until the context ends.
func (n *Namespaces) Run(ctx context.Context) { n.informer.RunWithContext(ctx) }

// Read says why the namespaces have never been known, nil once they have.
func (n *Namespaces) Read() error {
	if !n.informer.HasSynced() || !n.read.HasSynced() {
		return errors.New("the namespaces have not been read from the API server yet")
	}
	return nil
}

// Freshness tells how long ago the namespaces were last in step with the API server.
func (n *Namespaces) Freshness() *Freshness { return n.fresh }

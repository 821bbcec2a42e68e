package cluster

import (
	"context"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/cache"
)

// podPage is how many pods are read at once where the API server does not stream them. A page is a
// few MB until it is shrunk; read as one list, 30,000 pods took 348 MB.
const podPage = 500

// livingPods are the pods that may send: those that have finished do not any more, and a pending
// one's sidecar may run already.
var livingPods = fields.AndSelectors(fields.OneTermNotEqualSelector("status.phase", "Failed"), fields.OneTermNotEqualSelector("status.phase", "Succeeded"))

// shrunkPods is a list of cachedPods.
type shrunkPods struct {
	metav1.TypeMeta
	metav1.ListMeta
	Items []runtime.Object
}

// DeepCopyObject is not asked for a copy: nobody changes a list that was read.
func (l *shrunkPods) DeepCopyObject() runtime.Object { return l }

// listPods is how an informer lists and watches pods. API servers that have WatchList stream the
// first list through the watch, and keep shrinks each as it comes. A list from the others is read
// in pages, each shrunk before the next is asked for.
func listPods(pods corev1client.PodInterface, keep cache.TransformFunc) *cache.ListWatch {
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			options.FieldSelector, options.Limit = livingPods.String(), podPage
			options.ResourceVersion, options.ResourceVersionMatch = "", "" // a list as of an older version is not cut into pages
			all := &shrunkPods{}
			for {
				page, err := pods.List(ctx, options)
				if err != nil {
					return nil, err // of a page that has expired too: the informer begins anew
				}
				for i := range page.Items {
					kept, err := keep(&page.Items[i])
					if err != nil {
						return nil, err
					}
					all.Items = append(all.Items, kept.(runtime.Object))
				}
				all.ResourceVersion, options.Continue = page.ResourceVersion, page.Continue
				if options.Continue == "" {
					return all, nil
				}
			}
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			options.FieldSelector = livingPods.String()
			return pods.Watch(ctx, options)
		},
	}
}

package cluster

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unique"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"github.com/meshpulse/meshpulse/aggregator"
)

// ending is a pod as the API server tells it: created so many seconds after a time, its deletion
// begun so many after it, if not 0.
func ending(name string, at time.Time, created, deleted int) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Namespace: "test", Name: name, CreationTimestamp: metav1.NewTime(at.Add(time.Duration(created) * time.Second)),
	}}
	if deleted != 0 {
		p.DeletionTimestamp = new(metav1.NewTime(at.Add(time.Duration(deleted) * time.Second)))
		p.DeletionGracePeriodSeconds = new(int64(0))
	}
	return p
}

// When a pod's deletion began is what was said first, and of its own: another one of its name that
// goes meanwhile takes nothing with it. Of a pod that is not seen to go it is forgotten in the end.
func TestWhenADeletionBeganIsThePodsOwn(t *testing.T) {
	now := time.Now()
	x, err := NewPods(nil, func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	keep := func(p *corev1.Pod) *cachedPod {
		t.Helper()
		kept, err := x.keep(p)
		if err != nil {
			t.Fatal(err)
		}
		return kept.(*cachedPod)
	}
	before := keep(ending("a", now, -100, -30))
	x.add(before)
	keep(ending("a", now, -20, -10))
	x.forget(before)
	if got := int64(keep(ending("a", now, -20, 5)).left) - now.Unix(); got != -10 {
		t.Errorf("the deletion began at %d s, want -10", got)
	}
	x.forget(keep(ending("a", now, -20, 5)))
	if got := int64(keep(ending("a", now, -20, 5)).left) - now.Unix(); got != 5 {
		t.Errorf("once it has gone: at %d s, want 5", got)
	}
	now = now.Add(GoneFor + time.Minute)
	other := keep(ending("b", now, -20, 0))
	x.add(other)
	x.forget(other)
	if len(x.leaving) != 0 {
		t.Errorf("an hour later %v are known to be leaving", x.leaving)
	}
}

// A look finds each pod once, whatever sets it is of, those of the namespace alone that a set
// names, and of those that have gone the ones since a time.
func TestALookFindsThePodsOfItsSetsOnce(t *testing.T) {
	now := time.Now()
	x, err := NewPods(nil, func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	add := func(namespace, name, workload, canonical string) *cachedPod {
		c := &cachedPod{
			name: name, of: unique.Make(kindred{namespace: namespace, workload: workload, canonical: canonical}), created: secondsOf(now.Unix()), wired: true,
		}
		x.add(c)
		return c
	}
	add("one", "a", "w", "c")
	add("two", "b", "w", "c")
	for _, name := range []string{"long-gone", "gone"} {
		x.forget(add("one", name, "w", "c"))
		now = now.Add(time.Minute)
	}
	for name, tc := range map[string]struct {
		sets  []aggregator.Meant
		since time.Time
		want  []string
	}{
		"two sets with the same workload":    {sets: []aggregator.Meant{{Namespace: "one", Workload: "w"}, {Namespace: "one"}}, since: now, want: []string{"a"}},
		"a canonical service of a namespace": {sets: []aggregator.Meant{{Namespace: "two", CanonicalService: "c"}}, since: now, want: []string{"b"}},
		"of all":                             {sets: []aggregator.Meant{{CanonicalService: "c"}}, since: now, want: []string{"a", "b"}},
		"gone since a while ago":             {sets: []aggregator.Meant{{Namespace: "one"}}, since: now.Add(-90 * time.Second), want: []string{"a", "gone"}},
		"gone since long ago":                {sets: []aggregator.Meant{{Namespace: "one"}}, since: now.Add(-time.Hour), want: []string{"a", "gone", "long-gone"}},
	} {
		var got []string
		x.Each(tc.sets, tc.since, func(p *Pod) { got = append(got, p.Identity.Name) })
		if slices.Sort(got); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %s", name, cmp.Diff(tc.want, got))
		}
	}
}

// An older watch that ends late takes nothing from the one that is open, and one that has not come
// to the end of what it begins with shows nothing: what failed before is still why.
func TestTheNewestWatchTells(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := NewFreshness("pods", time.Now)
		open := func(listing bool) (*watch.FakeWatcher, watch.Interface) {
			fake := watch.NewFake()
			source := f.Follow(&cache.ListWatch{WatchFuncWithContext: func(context.Context, metav1.ListOptions) (watch.Interface, error) { return fake, nil }})
			w, err := source.WatchWithContext(t.Context(), metav1.ListOptions{SendInitialEvents: &listing})
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				for range w.ResultChan() {
				}
			}()
			return fake, w
		}
		_, older := open(false)
		_, newer := open(false)
		time.Sleep(time.Minute)
		older.Stop()
		synctest.Wait()
		time.Sleep(time.Minute)
		if age := f.Age(); age != 0 {
			t.Errorf("in step %s ago while a watch is open", age)
		}
		newer.Stop()
		synctest.Wait()
		f.Done(errors.New("no route to host"))
		fake, listing := open(true)
		fake.Add(&corev1.Pod{})
		time.Sleep(time.Minute)
		if err := f.Stale(); err == nil || !strings.Contains(err.Error(), "no route to host") {
			t.Errorf("while all there is is being told: %v", err)
		}
		listing.Stop()
		synctest.Wait()
	})
}

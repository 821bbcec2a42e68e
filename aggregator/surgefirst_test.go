package aggregator

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/prometheus/model/labels"
)

// The first flush of a pod that flushes seldom may come in two rows, when its second message is
// held up, or be followed at once by one of another stream: it has taken no shorter for that, and
// is no surge among pods that flush often.
func TestAFirstFlushInTwoRowsIsNoSurge(t *testing.T) {
	for name, again := range map[string]func(p *surgePods, slow *surgeTestPod, stamp int64){
		"of one flush": func(p *surgePods, slow *surgeTestPod, stamp int64) { slow.send(p, stamp, 2) },
		"of another stream": func(p *surgePods, slow *surgeTestPod, _ int64) {
			slow.stream.Close()
			slow.stream = p.store.Connect(slow.pod())
			slow.send(p, time.Now().UnixMilli(), 1)
			slow.send(p, time.Now().UnixMilli(), 2)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newSurgePods(t, 4, 5*time.Second, 1)
				defer p.close()
				d := p.detector(SurgeConfig{})
				p.run(20*time.Minute, 40, func() {})
				calm := func() {
					t.Helper()
					if s := d.At(time.Now()); s.Active {
						t.Fatalf("%+v", s)
					}
				}
				calm()
				slow := &surgeTestPod{}
				slow.stream = p.store.Connect(slow.pod())
				defer func() { slow.stream.Close() }()
				for i := range 4 {
					slow.total += 900
					stamp := time.Now().UnixMilli()
					slow.send(p, stamp, 1)
					if i == 0 {
						time.Sleep(600 * time.Millisecond)
						again(p, slow, stamp)
					} else {
						slow.send(p, stamp, 2)
					}
					p.run(time.Minute-time.Millisecond*time.Duration(time.Now().UnixMilli()-stamp), 40, calm)
				}
			})
		})
	}
}

// Streams may each end after a flush, so that none measures the first: on a path that is cut more
// often than a sidecar flushes. Such pods are looked at all the same, and are no surge where they
// flush more seldom than they tell.
func TestPodsWhoseStreamsEndAfterAFlushAreLookedAt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newSurgePods(t, 3, 5*time.Second, 1)
		defer p.close()
		d := p.detector(SurgeConfig{})
		again := func() {
			for _, pod := range p.pods {
				who := *pod.stream.pod
				pod.stream.Close()
				pod.stream = p.store.Connect(who)
			}
		}
		p.run(5*time.Minute, 40, func() {
			again()
			if s := d.At(time.Now()); s.Active {
				t.Fatalf("steady traffic: %+v", s)
			}
		})
		told := false
		p.run(15*time.Second, 200, func() {
			again()
			told = told || d.At(time.Now()).Active
		})
		if !told {
			t.Error("a step to five times as much is not told")
		}
	})
	synctest.Test(t, func(t *testing.T) {
		p := newSurgePods(t, 4, 5*time.Second, 1)
		defer p.close()
		d := p.detector(SurgeConfig{})
		calm := func() {
			t.Helper()
			if s := d.At(time.Now()); s.Active {
				t.Fatalf("%+v", s)
			}
		}
		p.run(20*time.Minute, 40, calm)
		slow := &surgeTestPod{}
		for range 6 {
			who := slow.pod()
			who.FlushInterval = 5 * time.Second // it flushes once a minute
			slow.stream = p.store.Connect(who)
			slow.total += 900
			slow.send(p, time.Now().UnixMilli(), 1)
			slow.stream.Close()
			p.run(time.Minute, 40, calm)
		}
	})
}

func (p *surgeTestPod) pod() Pod {
	return Pod{Namespace: "test", Name: "slow", FlushInterval: time.Minute}
}

// send commits a message with a counter of the pod's total, and the histogram of its last interval,
// in which it counted 900.
func (p *surgeTestPod) send(all *surgePods, stamp int64, series uint64) {
	all.t.Helper()
	l := labels.FromStrings("code", string(rune('0'+series)))
	b := &Batch{Timestamp: stamp, Buckets: []Bucket{{UpperBound: 1, Count: 900}}, Samples: []Sample{
		{Key: series, Timestamp: stamp, Kind: Counter, Value: p.total},
		{Key: series + 10, Timestamp: stamp, Kind: Histogram, Count: 900, Value: 900, Last: 1},
	}}
	if err := p.stream.Commit(time.Now(), b, described{named("istio_requests_total", l), named("istio_request_duration_milliseconds", l)}); err != nil {
		all.t.Fatal(err)
	}
}

package cluster

import (
	"encoding/json"
	"log/slog"
	"sync"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

// asking are the ScaledObjects with triggers that ask meshpulse, as the HPAs that KEDA makes of
// them. A nil one has none.
type asking struct {
	ours    func(address string) bool // whether a trigger's scalerAddress leads here
	changed func()                    // is told of each change of what is read of one
	log     *slog.Logger

	mu    sync.Mutex
	known map[types.NamespacedName]hpas.HPA // by the ScaledObject
}

func newAsking(ours func(address string) bool, changed func(), log *slog.Logger) *asking {
	return &asking{ours: ours, changed: changed, log: log, known: map[types.NamespacedName]hpas.HPA{}}
}

func (s *asking) take(of *unstructured.Unstructured) {
	if s == nil {
		return
	}
	object, err := json.Marshal(of.Object)
	var h hpas.HPA
	asks := false
	if err == nil {
		h, asks, err = hpas.ReadScaledObject(object, s.ours)
	}
	if err != nil { // one that KEDA's own schema does not allow
		s.log.Warn("a ScaledObject cannot be read", "namespace", of.GetNamespace(), "name", of.GetName(), "err", err)
	}
	s.set(objectKey(of), h, asks)
}

// set notes what is read of a ScaledObject, or that there is nothing.
func (s *asking) set(key types.NamespacedName, h hpas.HPA, asks bool) {
	if s == nil {
		return
	}
	s.mu.Lock()
	was, known := s.known[key]
	if delete(s.known, key); asks {
		s.known[key] = h
	}
	s.mu.Unlock()
	if asks != known || asks && !was.ReadsAs(h) {
		s.changed()
	}
}

// with returns the HPAs and those of ScaledObjects: KEDA's own, or where it has not made one yet
// what it will be. The list is the caller's.
func (s *asking) with(list []hpas.HPA) []hpas.HPA {
	if s == nil {
		return list
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.known) == 0 {
		return list
	}
	places := make(map[types.NamespacedName]int, len(list))
	for i, h := range list {
		places[h.Key()] = i
	}
	for _, h := range s.known {
		if i, made := places[h.Key()]; made {
			list[i] = h.As(list[i].HorizontalPodAutoscaler)
		} else {
			list = append(list, h)
		}
	}
	return list
}

package main

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// An event that was away for one look, that began anew, or in whose place there is another, has not
// stood.
func TestAnEventStandsWhileItIsThere(t *testing.T) {
	start := time.Unix(1000, 0)
	event := func(uid string, began, renewed int) corev1.Event {
		at := func(s int) metav1.Time { return metav1.NewTime(start.Add(time.Duration(s) * time.Second)) }
		return corev1.Event{ObjectMeta: metav1.ObjectMeta{UID: types.UID(uid)}, FirstTimestamp: at(began), LastTimestamp: at(renewed)}
	}
	type seen struct {
		Stood                        time.Duration
		Missing, Restarted, Renewals int
	}
	for name, tc := range map[string]struct {
		looks [][]corev1.Event // every ten seconds
		want  seen
	}{
		"never there":     {[][]corev1.Event{nil, nil}, seen{}},
		"renewed":         {[][]corev1.Event{nil, {event("a", 0, 0)}, {event("a", 0, 0)}, {event("a", 0, 15)}}, seen{Stood: 20 * time.Second, Renewals: 1}},
		"away once":       {[][]corev1.Event{{event("a", 0, 0)}, nil, {event("a", 0, 0)}}, seen{Missing: 1}},
		"another's place": {[][]corev1.Event{{event("a", 0, 0)}, {event("b", 0, 0)}}, seen{Missing: 1}},
		"beside another":  {[][]corev1.Event{{event("a", 0, 0)}, {event("b", 5, 5), event("a", 0, 0)}}, seen{Stood: 10 * time.Second}},
		"begun anew":      {[][]corev1.Event{{event("a", 0, 0)}, {event("a", 9, 9)}}, seen{Stood: 10 * time.Second, Restarted: 1, Renewals: 1}},
	} {
		s := &standing{}
		for i, events := range tc.looks {
			s.look(start.Add(time.Duration(i)*10*time.Second), events)
		}
		if diff := cmp.Diff(tc.want, seen{s.stood(), s.missing, s.restarted, s.renewals}); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// An alert that fires, is over and fires again has two spans; one that nobody was to see is told.
func TestAlertsThatFireAreSpans(t *testing.T) {
	start := time.Unix(1000, 0)
	at := func(s int) time.Time { return start.Add(time.Duration(s) * time.Second) }
	a := &alerts{began: start, spans: map[string][]span{}}
	a.expect("Down")
	for s, names := range [][]string{nil, {"Down"}, {"Down", "Late"}, {"Late"}, {"Down", "Late"}} {
		a.saw(at(s), names)
	}
	want := map[string][]span{"Down": {{at(1), at(3)}, {from: at(4)}}, "Late": {{from: at(2)}}}
	if diff := cmp.Diff(want, a.spans, cmp.AllowUnexported(span{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if from, ok := a.fired("Down", at(2)); !ok || !from.Equal(at(4)) {
		t.Errorf("it fires anew at %v, %t", from, ok)
	}
	if _, ok := a.fired("Down", at(5)); ok {
		t.Error("it fires after it was seen last")
	}
	if to, ok := a.over("Down"); ok {
		t.Errorf("it is over at %v, while it fires", to)
	}
	if diff := cmp.Diff([]string{"Late fired 2s after the start and had no trouble to tell of"}, a.others()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	a.saw(at(6), nil)
	if to, ok := a.over("Down"); !ok || !to.Equal(at(6)) {
		t.Errorf("it is over at %v, %t", to, ok)
	}
}

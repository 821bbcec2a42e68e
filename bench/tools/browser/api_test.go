package browser

import (
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

// object is one in JSON, as the API has it.
type object map[string]any

func (e object) name() string { return e["metadata"].(object)["name"].(string) }

// metric is the first of an explanation's.
func (e object) metric() object { return e["metrics"].([]object)[0] }

// held makes an explanation one of an HPA that is held.
func (e object) held() {
	m := e.metric()
	m["rule"], m["heldSince"] = "held", at.Add(-6*time.Minute)
	e["troubles"] = []object{{
		"kind": "Held", "what": "HELD for 6m: the answer 30 keeps 3 replicas",
		"cause": "1 sidecar silent (" + e.name() + "-7c9d5-x2x8q for 6m2s)", "remedy": "kubectl -n shop logs " + e.name() + "-7c9d5-x2x8q -c istio-proxy says why it does not report",
	}}
}

// at is now, in the fake API server.
var at = time.Date(2026, 1, 2, 15, 0, 0, 0, time.UTC)

// api is an API server that leads to a meshpulse with some HPAs, which the test changes.
type api struct {
	*httptest.Server
	mu      sync.Mutex
	items   []object
	failing bool
}

func newAPI(t testing.TB) *api {
	a := &api{}
	checkout := hpa("checkout", "30", "held")
	checkout.held()
	checkout.metric()["history"] = hour()
	search := hpa("search", "61.2", "surge")
	search["troubles"] = []object{{"kind": "Surge", "what": "SURGE for 7.0s: 61.2/s, 20/s before", "cause": "3 times as many requests as in the minute before", "remedy": "none is needed: the answer is its rate"}}
	search.metric()["surge"] = object{"active": true, "answered": true, "rate": 61.2, "baseline": 20, "ratio": 1.5, "tailLimit": 3e-9, "windowSeconds": 10}
	cart := hpa("cart", "18", "seen")
	cart["troubles"] = []object{{"kind": "Doubtful", "what": "NoisyRate", "cause": "the window is short for so few requests", "remedy": "a longer window"}}
	cart["events"] = []object{{"Reason": "NoisyRate", "Message": "the window is short for so few requests: a longer window"}}
	a.items = []object{hpa("catalog", "24", "seen"), cart, search, checkout, hpa("ledger", "7.5", "seen")}
	a.Server = httptest.NewServer(a)
	t.Cleanup(a.Close)
	return a
}

func (a *api) change(name string, by func(object)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, e := range a.items {
		if e.name() == name {
			by(e)
		}
	}
}

func (a *api) fail(on bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.failing = on
}

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.failing {
		http.Error(w, "not now", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	path := strings.TrimPrefix(r.URL.Path, "/apis/meshpulse.io/v1alpha1")
	if path == "/explanations" {
		_ = json.NewEncoder(w).Encode(object{"kind": "ExplanationList", "apiVersion": "meshpulse.io/v1alpha1", "items": a.items})
		return
	}
	for _, e := range a.items {
		if path == "/namespaces/shop/explanations/"+e.name() {
			ago, _ := time.ParseDuration(strings.TrimPrefix(r.URL.Query().Get("at"), "-"))
			_ = json.NewEncoder(w).Encode(before(e, ago))
			return
		}
	}
	http.NotFound(w, r)
}

// before is an explanation of so long ago, with the values that its pods had.
func before(e object, ago time.Duration) object {
	b, err := json.Marshal(e)
	if err != nil {
		panic(err)
	}
	var then object
	if err := json.Unmarshal(b, &then); err != nil {
		panic(err)
	}
	then["at"] = at.Add(-ago)
	for i, p := range then["metrics"].([]any)[0].(map[string]any)["pods"].([]any) {
		pod := p.(map[string]any)
		if pod["state"] == "silent" && ago < 6*time.Minute {
			continue
		}
		pod["value"] = fmt.Sprintf("%.3g", 10+2*math.Sin(ago.Seconds()/50+float64(2*i)))
	}
	return then
}

// hpa is an HPA of three pods that scales by requests.
func hpa(name, value, rule string) object {
	var pods []object
	for i, id := range []string{"b7kzl", "m4vd2", "x2x8q"} {
		p := object{"namespace": "shop", "name": name + "-7c9d5-" + id, "workload": name, "state": "reporting", "lastFlush": at.Add(-2 * time.Second), "value": "10"}
		if rule == "held" && i == 2 {
			p["state"], p["lastFlush"], p["value"] = "silent", at.Add(-6*time.Minute), ""
		}
		pods = append([]object{p}, pods...)
	}
	return object{
		"kind": "Explanation", "apiVersion": "meshpulse.io/v1alpha1", "metadata": object{"namespace": "shop", "name": name}, "at": at, "now": at,
		"target": "Deployment/" + name, "minReplicas": 1, "maxReplicas": 10, "replicas": object{"spec": 3, "status": 3, "from": "scale"},
		"metrics": []object{{
			"name": "istio-requests-per-second", "selector": "destination_workload=" + name, "targetType": "AverageValue", "target": "10", "value": value, "seen": value, "rule": rule,
			"expression": `sum(rate(istio_requests_total{reporter="destination",destination_workload="` + name + `",destination_workload_namespace="shop"}[1m]))`,
			"displayed":  value + "/10 (avg)", "windowSeconds": 60, "coveredSeconds": 60, "flushSeconds": 5, "ageSeconds": 2.1, "series": 12, "reporting": 3, "expected": 3,
			"pods": pods, "asks": object{"replicas": 3, "ratio": 1, "withinTolerance": true},
		}},
		"decision": object{"replicas": 3, "recommended": 3, "stabilized": 3, "toleranceUp": 0.1, "toleranceDown": 0.1, "downscaleSeconds": 300},
	}
}

// hour is a history: a wave, a surge with a raise, and a held answer at its end.
func hour() (points []object) {
	for i := range 240 {
		when := at.Add(time.Duration(i-239) * 15 * time.Second)
		v := 21 + 4*math.Sin(float64(i)/25) + 0.8*math.Sin(float64(i)*1.7)
		replicas := 3
		q := object{"at": when, "rule": "seen"}
		switch {
		case i >= 110 && i < 116:
			q["rule"], q["baseline"], v = "surge", v, 45+float64(i-110)
		case i >= 116 && i < 120:
			q["rule"], v, replicas = "raised", 51, 6
		case i >= 120 && i < 150:
			v, replicas = 51-float64(i-120)*0.9, 6
		case i >= 215:
			q["rule"] = "held"
		}
		wanted := int(math.Ceil(v / 10))
		if i >= 215 {
			v, wanted = 30, 3
			q["seen"] = 16 + 0.8*math.Sin(float64(i)*1.7)
		} else {
			q["seen"] = v
		}
		q["answered"], q["wanted"], q["asked"], q["replicas"] = v, wanted, max(replicas, min(wanted, replicas)), replicas
		points = append(points, q)
	}
	return points
}

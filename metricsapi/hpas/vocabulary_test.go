package hpas

import (
	"strings"
	"testing"
)

func TestTheVocabulary(t *testing.T) {
	istioOnly := func(metric string) bool { return strings.HasPrefix(metric, istioPrefix) }
	all := func(string) bool { return true }
	shop := func(metric string) bool { return istioOnly(metric) || strings.HasPrefix(metric, "shop_") }
	for _, tc := range []struct {
		keeps         func(string) bool
		expr          string
		dropped, asks bool
	}{
		{istioOnly, `istio_requests_total`, false, true},
		{istioOnly, `istio_request_bytes_sum`, false, true},
		{istioOnly, `istio_requests`, false, false},
		{istioOnly, `{__name__=~"istio_.*"}`, false, true},
		{istioOnly, `{__name__=~"http_.*"}`, false, false},
		{istioOnly, `{pod="x"}`, false, true},
		{istioOnly, `http_requests_total`, true, false},
		{shop, `shop_orders_total`, false, true},
		{shop, `shop_seconds_bucket`, false, true},
		{shop, `istio_requests`, false, false},
		{all, `http_requests_total`, false, false},
		{nil, `http_requests_total`, false, false},
		{func(m string) bool { return m == "shop_count" }, `shop_count`, false, true},
		{func(m string) bool { return m == "shop" }, `shop_count`, false, true},
		{func(m string) bool { return m == "istio_tcp" }, `istio_requests_total`, true, true},
	} {
		v, p := Vocabulary{Keeps: tc.keeps}, Parse(tc.expr).Parts[0]
		if v.dropped(p) != tc.dropped || v.Metric(p) != tc.asks {
			t.Errorf("%s: dropped %t, asked for %t; want %t, %t", tc.expr, v.dropped(p), v.Metric(p), tc.dropped, tc.asks)
		}
	}
}

package manifests

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/promql/promqltest"
	"github.com/prometheus/prometheus/rules"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

const (
	alertsFile     = "components/alerts/prometheusrule.yaml"
	dashboardsFile = "components/alerts/dashboards/operator.json"
)

// prometheusRule is the part of the Prometheus operator's object that Prometheus itself reads.
type prometheusRule struct {
	Spec struct {
		Groups []struct {
			Name  string
			Rules []struct {
				Alert, Expr, For    string
				Labels, Annotations map[string]string
			}
		}
	}
}

func readAlerts(t *testing.T) (prometheusRule, []byte) {
	t.Helper()
	content, err := os.ReadFile(alertsFile)
	if err != nil {
		t.Fatal(err)
	}
	var r prometheusRule
	if err := yaml.Unmarshal(content, &r); err != nil {
		t.Fatal(err)
	}
	var whole struct{ Spec map[string]any }
	if err := yaml.Unmarshal(content, &whole); err != nil {
		t.Fatal(err)
	}
	file, err := yaml.Marshal(whole.Spec)
	if err != nil {
		t.Fatal(err)
	}
	return r, file
}

// firing are the alerts that fire at an instant over series in promtool's notation, as
// promtool test rules finds them: each rule is evaluated every 30 s until then.
func firing(t *testing.T, series string, until time.Duration) []string {
	t.Helper()
	_, content := readAlerts(t)
	file := filepath.Join(t.TempDir(), "rules.yaml")
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	const every = 30 * time.Second
	load, err := promqltest.NewLazyLoader("load 30s\n"+series, promqltest.LazyLoaderOpts{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = load.Close() }()
	load.SubqueryInterval = every
	m := rules.NewManager(&rules.ManagerOptions{
		QueryFunc: rules.EngineQueryFunc(load.QueryEngine(), load.Storage()), Appendable: load.Storage(), Queryable: load.Storage(), Context: context.Background(),
		NotifyFunc: func(context.Context, string, ...*rules.Alert) {}, Logger: slog.New(slog.DiscardHandler),
	})
	groups, errs := m.LoadGroups(every, labels.EmptyLabels(), "", nil, false, file)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	var found []string
	for at := time.Duration(0); at <= until; at += every {
		ts := time.Unix(0, 0).Add(at).UTC()
		load.WithSamplesTill(ts, func(err error) {
			if err != nil {
				t.Fatal(err)
			}
			found = nil
			for _, g := range groups {
				g.Eval(context.Background(), ts)
				for _, r := range g.AlertingRules() {
					if r.Health() == rules.HealthBad {
						t.Fatalf("%s: %v", r.Name(), r.LastError())
					}
					if r.State() == rules.StateFiring {
						found = append(found, r.Name())
					}
				}
			}
		})
	}
	slices.Sort(found)
	return slices.Compact(found)
}

// Each alert fires over the series of its trouble, and over no others; where all is well none does.
func TestAlertsFire(t *testing.T) {
	const well = `up{job="meshpulse"} 1x200
meshpulse_metricsapi_answers_total{outcome="ok"} 0+30x200
meshpulse_metricsapi_answers_total{outcome="failed"} 0x200
meshpulse_metricsapi_held_hpas{namespace="test"} 0x200
meshpulse_store_memory_bytes 1e6x200
meshpulse_store_memory_budget_bytes 1e9x200
meshpulse_metricsapi_watch_seconds_since_success{resource="pods"} 0x200
meshpulse_ingest_streams 3x200
meshpulse_faults_total{part="query"} 0x200
meshpulse_relay_replicas{state="active"} 2x200
meshpulse_relay_silent_seconds{replica="meshpulse-1"} 0x200
`
	cases := map[string]struct {
		series string
		until  time.Duration
	}{
		"MeshpulseAbsent":           {"", 10 * time.Minute},
		"MeshpulseAPIServiceDown":   {`aggregator_unavailable_apiservice{name="v1beta1.external.metrics.k8s.io"} 1x200`, 10 * time.Minute},
		"MeshpulseAnswersFail":      {`meshpulse_metricsapi_answers_total{outcome="failed"} 0+30x200`, 20 * time.Minute},
		"MeshpulseHPAHeld":          {`meshpulse_metricsapi_held_hpas{namespace="test"} 1x200`, 20 * time.Minute},
		"MeshpulseRaisesFail":       {`meshpulse_metricsapi_surge_raises_total{outcome="forbidden"} 0 0 0 1x200`, 5 * time.Minute},
		"MeshpulseSamplesDropped":   {`meshpulse_store_dropped_samples_total{reason="series_limit"} 0+5x200`, 20 * time.Minute},
		"MeshpulseStreamsEnd":       {`meshpulse_ingest_stream_ends_total{reason="too_large"} 0+1x200`, 20 * time.Minute},
		"MeshpulseMemoryNearBudget": {"meshpulse_store_memory_bytes 95e7x200", 20 * time.Minute},
		"MeshpulseWatchDeaf":        {`meshpulse_metricsapi_watch_seconds_since_success{resource="pods"} 60x200`, 10 * time.Minute},
		"MeshpulseCertificateEnds":  {"meshpulse_ingest_certificate_expires_timestamp_seconds 1000x200", 10 * time.Minute},
		"MeshpulseFault":            {`meshpulse_faults_total{part="query"} 0 0 0 1x200`, 5 * time.Minute},
		"MeshpulseSendersRefused":   {`meshpulse_ingest_identity_refusals_total{reason="pod"} 0+1x200`, 20 * time.Minute},
		"MeshpulsePeersLost":        {`meshpulse_relay_silent_seconds{replica="meshpulse-1"} 0+30x200`, 20 * time.Minute},
		"MeshpulsePeersLost, alone": {`meshpulse_relay_replicas{state="active"} 1x200`, 20 * time.Minute},
		"MeshpulseEventsNotTaken":   {"meshpulse_metricsapi_queued_events 1000x200", 20 * time.Minute},
		"nothing where all is well": {"other 1x200", time.Hour},
		// without a limit of memory there is no budget
		"nothing where all is well, without a budget": {"meshpulse_store_memory_budget_bytes 0x200", time.Hour},
	}
	r, _ := readAlerts(t)
	for _, g := range r.Spec.Groups {
		for _, rule := range g.Rules {
			if _, ok := cases[rule.Alert]; !ok {
				t.Errorf("alert %s is in no test", rule.Alert)
			}
		}
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			alert, _, _ := strings.Cut(name, ",")
			series, want := tc.series, []string{alert}
			if alert == "nothing where all is well" {
				want = nil
			}
			switch alert {
			case "MeshpulseAbsent":
				series = "other 1x200"
			default: // the trouble's series in place of the same that is well
				name, _, _ := strings.Cut(tc.series, " ")
				for line := range strings.Lines(well) {
					if !strings.HasPrefix(line, name+" ") {
						series += "\n" + strings.TrimSpace(line)
					}
				}
			}
			if got := firing(t, series, tc.until); !slices.Equal(got, want) {
				t.Errorf("%v fire, want %v", got, want)
			}
		})
	}
}

// Each of two replicas tells of an HPA that is held: it is one all the same.
func TestAnHPAThatIsHeldIsOne(t *testing.T) {
	r, _ := readAlerts(t)
	for _, rule := range r.Spec.Groups[0].Rules {
		if rule.Alert == "MeshpulseHPAHeld" {
			promqltest.RunTest(t, fmt.Sprintf(`load 30s
meshpulse_metricsapi_held_hpas{namespace="test", pod="a"} 1x10
meshpulse_metricsapi_held_hpas{namespace="test", pod="b"} 1x10

eval instant at 1m %s
  {namespace="test"} 1
`, rule.Expr), promqltest.NewTestEngine(t, false, 0, promqltest.DefaultMaxSamplesPerQuery))
		}
	}
}

// Each alert says what is wrong and where the runbook has it, and asks for metrics that are there.
func TestAlertsAreInTheRunbook(t *testing.T) {
	r, _ := readAlerts(t)
	runbook := below(t, "manifests/runbook.md", "## Alerts")
	named := words("`(Meshpulse\\w+)`", runbook)
	var alerts []string
	for _, g := range r.Spec.Groups {
		for _, rule := range g.Rules {
			alerts = append(alerts, rule.Alert)
			if rule.Annotations["summary"] == "" || !strings.HasSuffix(rule.Annotations["runbook_url"], "manifests/runbook.md#alerts") || rule.Labels["severity"] == "" {
				t.Errorf("%s: %v, %v", rule.Alert, rule.Annotations, rule.Labels)
			}
		}
	}
	same(t, "alert", "manifests/runbook.md", alerts, named)
	for _, name := range words(`\b(meshpulse_[a-z_]+)`, read(t, "manifests/"+alertsFile)+read(t, "manifests/"+dashboardsFile)) {
		base := name
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			base = strings.TrimSuffix(base, suffix)
		}
		if !strings.Contains(read(t, "manifests/runbook.md"), base) {
			t.Errorf("%s is no metric that the runbook has", name)
		}
	}
}

// Every query of the dashboard parses and has a value over series of the metrics that it names.
func TestTheDashboardsQueriesHaveValues(t *testing.T) {
	var dashboard struct {
		Title, UID string
		Panels     []struct {
			Title   string
			Type    string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal([]byte(read(t, "manifests/"+dashboardsFile)), &dashboard); err != nil {
		t.Fatal(err)
	}
	queries := 0
	for _, panel := range dashboard.Panels {
		if panel.Type != "row" && len(panel.Targets) == 0 {
			t.Errorf("panel %q asks for nothing", panel.Title)
		}
		for _, target := range panel.Targets {
			queries++
			expr := strings.ReplaceAll(target.Expr, "$__rate_interval", "5m")
			tree, err := parser.ParseExpr(expr)
			if err != nil {
				t.Errorf("panel %q: %v", panel.Title, err)
				continue
			}
			series := "load 30s\n"
			parser.Inspect(tree, func(node parser.Node, _ []parser.Node) error {
				if s, ok := node.(*parser.VectorSelector); ok {
					set := []string{`le="1"`}
					for _, m := range s.LabelMatchers {
						if m.Name != model.MetricNameLabel && m.Type == labels.MatchEqual {
							set = append(set, fmt.Sprintf("%s=%q", m.Name, m.Value))
						}
					}
					series += fmt.Sprintf("  %s{%s} 0+1x40\n", s.Name, strings.Join(set, ","))
					set[0] = `le="+Inf"`
					series += fmt.Sprintf("  %s{%s} 0+2x40\n", s.Name, strings.Join(set, ","))
				}
				return nil
			})
			load := promqltest.LoadedStorage(t, series)
			engine := promqltest.NewTestEngine(t, false, 0, 1e6)
			q, err := engine.NewInstantQuery(context.Background(), load, nil, expr, time.Unix(600, 0))
			if err != nil {
				t.Fatal(err)
			}
			result := q.Exec(context.Background())
			if v, err := result.Vector(); err != nil || len(v) == 0 {
				t.Errorf("panel %q, %s: %v, %v", panel.Title, expr, v, err)
			}
			_ = load.Close()
		}
	}
	if queries < 15 {
		t.Errorf("only %d queries are found", queries)
	}
}

// The PodMonitor scrapes a port that the pod has, with a token that may read the path, and checks
// the certificate for a name that it is made for.
func TestThePodMonitorScrapesWhatThePodServes(t *testing.T) {
	var monitor struct {
		Spec struct {
			Selector            metav1.LabelSelector
			PodMetricsEndpoints []struct {
				Port, Path, Scheme string
				Authorization      struct{ Credentials corev1.SecretKeySelector }
				TLSConfig          struct {
					ServerName string
					CA         struct{ Secret corev1.SecretKeySelector }
				}
			}
		}
	}
	if err := yaml.Unmarshal([]byte(read(t, "manifests/components/pod-monitor/podmonitor.yaml")), &monitor); err != nil {
		t.Fatal(err)
	}
	base, rights := renderObjects(t, "base"), decodeFile(t, "components/pod-monitor/rbac.yaml")
	deployment := one[*appsv1.Deployment](t, base, "meshpulse")
	if !maps.Equal(monitor.Spec.Selector.MatchLabels, deployment.Spec.Selector.MatchLabels) || len(monitor.Spec.PodMetricsEndpoints) != 1 {
		t.Fatalf("%+v, want the pods of %v, once", monitor.Spec, deployment.Spec.Selector.MatchLabels)
	}
	scraped := monitor.Spec.PodMetricsEndpoints[0]
	if !slices.ContainsFunc(deployment.Spec.Template.Spec.Containers[0].Ports, func(p corev1.ContainerPort) bool { return p.Name == scraped.Port }) || scraped.Scheme != "https" {
		t.Errorf("the pod has no port %q, or does not speak %q there", scraped.Port, scraped.Scheme)
	}
	if s := scraped.TLSConfig; s.ServerName != "meshpulse.meshpulse-system.svc" || s.CA.Secret.Name != "meshpulse-serving-cert" || s.CA.Secret.Key != "ca.crt" {
		t.Errorf("%+v is not what install.sh makes the certificate for, or has not its authority", s)
	}
	binding := one[*rbacv1.ClusterRoleBinding](t, rights, "meshpulse:observer")
	role := one[*rbacv1.ClusterRole](t, base, binding.RoleRef.Name)
	if !slices.Contains(role.Rules[0].NonResourceURLs, scraped.Path) {
		t.Errorf("%s may not read %s", role.Name, scraped.Path)
	}
	token := one[*corev1.Secret](t, rights, scraped.Authorization.Credentials.Name)
	if token.Type != corev1.SecretTypeServiceAccountToken || token.Annotations[corev1.ServiceAccountNameKey] != binding.Subjects[0].Name || scraped.Authorization.Credentials.Key != corev1.ServiceAccountTokenKey {
		t.Errorf("%+v is not the token of %+v", token.ObjectMeta, binding.Subjects)
	}
}

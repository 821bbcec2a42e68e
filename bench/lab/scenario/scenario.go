// Package scenario reads the lab's scenarios, judges what was seen of one and writes it down:
// table, CSV, pictures and rows. It knows replicas, rates and times, and it must not know how they
// came about: no cluster, no process.
package scenario

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/meshpulse/meshpulse/bench/load"
)

// Scenario is one file of the folder scenarios.
type Scenario struct {
	// Name is the file's.
	Name string `json:"-"`
	// About says what it shows, for the table's head.
	About string `json:"about"`
	// HPASync are the HPA controller's sync periods; the scenario runs once with each (default: 15s
	// once).
	HPASync []metav1.Duration `json:"hpaSync,omitempty"`
	// Flush is the sidecars' stats_flush_interval (default 5s).
	Flush metav1.Duration `json:"flush,omitempty"`
	// Eviction lets the sidecars forget stats that were not used for so long, a multiple of Flush
	// (default: never).
	Eviction metav1.Duration `json:"eviction,omitempty"`
	// ScaleDownStabilization is the HPA controller's, for HPAs without a behavior (default:
	// Kubernetes', 5m).
	ScaleDownStabilization metav1.Duration `json:"scaleDownStabilization,omitempty"`
	// Components are those of manifests/components that meshpulse is installed with, beside its
	// APIService.
	Components []string `json:"components,omitempty"`
	// Keep are metrics of Envoy's own that meshpulse keeps beside its default (--keep).
	Keep []string `json:"keep,omitempty"`
	// TwoReplicas runs two of meshpulse, of which restart-meshpulse kills one in turn and starts it
	// anew 15 s later; it is ready again once Retention (default 75s) is over.
	TwoReplicas bool            `json:"twoReplicas,omitempty"`
	Retention   metav1.Duration `json:"retention,omitempty"`
	// Oracle runs one more by itself, beside two, which gets all that sidecars send to either and
	// is asked for nothing but what it knows: what both do is held against it (Beside).
	Oracle bool `json:"oracle,omitempty"`
	// Repeat runs every lane so many times at once, each in a namespace of its own (default 1), its
	// load starting at a random time within Shift, so that the phases of sync, flush and step
	// differ.
	Repeat int             `json:"repeat,omitempty"`
	Shift  metav1.Duration `json:"shift,omitempty"`
	// Lanes are the workloads under load at once, each in a namespace of its own.
	Lanes []Lane `json:"lanes"`
	// Load is the rate of every lane that has none of its own.
	Load load.Profile `json:"load,omitempty"`
	// MeasureFrom is from when on coverage, waste and wrong scale-downs are measured (default 0): a
	// window that fills for the first time shows a load that is not there yet.
	MeasureFrom metav1.Duration `json:"measureFrom,omitempty"`
	// Actions happen at times of the first lane's load.
	Actions []Action `json:"actions,omitempty"`
	// Checks say what must have been seen.
	Checks []Check `json:"checks"`
}

// Lane is a Deployment with its HPA and its load.
type Lane struct {
	// Namespace (default test). Replicas to start with (default 1), StartDelay from Running to
	// Ready.
	Namespace  string          `json:"namespace,omitempty"`
	Replicas   int32           `json:"replicas,omitempty"`
	StartDelay metav1.Duration `json:"startDelay,omitempty"`
	// Image and Args are the app container's: see mesh.Config.Apps (default: the lab's own app
	// without a limit).
	Image string   `json:"image,omitempty"`
	Args  []string `json:"args,omitempty"`
	// Inclusions has the sidecars send metrics of Envoy's own
	// (sidecar.istio.io/statsInclusionRegexps).
	Inclusions string `json:"inclusions,omitempty"`
	// HPA is the autoscaler.
	HPA HPA `json:"hpa"`
	// Beside are further HPAs of the namespace, manifests in place; nothing is measured of them.
	Beside []string `json:"beside,omitempty"`
	// FirstOwnerKilled is how long before the lane's first step that one of two replicas of
	// meshpulse is killed which answers for it, and acts (default: never). Lanes with it, and those
	// beside them, step in rounds between which both have their history again, instead of within
	// Shift.
	FirstOwnerKilled metav1.Duration `json:"firstOwnerKilled,omitempty"`
	// PerReplica is the rate that one replica is meant to take: what the ideal number of replicas
	// is reckoned with.
	PerReplica float64 `json:"perReplica"`
	// Load is the lane's own rate.
	Load load.Profile `json:"load,omitempty"`
}

// HPA is a file, relative to the project's root, or a manifest in place. Of either the namespace is
// set to the lane's, in its queries too.
type HPA struct {
	File     string `json:"file,omitempty"`
	Manifest string `json:"manifest,omitempty"`
	// Behavior replaces spec.behavior: the guides' HPAs have none and would take five minutes to
	// scale down.
	Behavior *autoscalingv2.HorizontalPodAutoscalerBehavior `json:"behavior,omitempty"`
	// Annotations are added, in place of those of the same name.
	Annotations map[string]string `json:"annotations,omitempty"`
}

// Action is something done to the system under load.
type Action struct {
	At metav1.Duration `json:"at"`
	// Do is restart-meshpulse, roll-meshpulse (a rolling update of two), delete-pods (Count of
	// them) or rollout.
	Do    string `json:"do"`
	Count int    `json:"count,omitempty"`
}

// The actions.
const (
	RestartMeshpulse = "restart-meshpulse"
	RollMeshpulse    = "roll-meshpulse"
	DeletePods       = "delete-pods"
	Rollout          = "rollout"
)

// Check is one thing that must hold. Exactly one of Desired, Ready, Event, Condition and Measure is
// set.
type Check struct {
	// Say is the check in words.
	Say string `json:"say"`
	// Lane is whose replicas, events or measure, by namespace ("": every lane's).
	Lane string `json:"lane,omitempty"`
	// From and To are when, by the lane's load; To 0 is the end.
	From metav1.Duration `json:"from,omitempty"`
	To   metav1.Duration `json:"to,omitempty"`
	// Desired and Ready bound the replicas throughout From to To, as [least, most].
	Desired []int `json:"desired,omitempty"`
	Ready   []int `json:"ready,omitempty"`
	// Event is the reason of a Warning event that the HPA must carry in the end.
	Event string `json:"event,omitempty"`
	// Times is how many events of the reason there must be, exactly (default: one or more).
	Times int `json:"times,omitempty"`
	// Condition is one that the HPA must have in the end, such as ScalingActive=True.
	Condition string `json:"condition,omitempty"`
	// Measure is the name of a measure of the report, with its bounds. HPASync limits it to runs
	// with that sync period.
	Measure string           `json:"measure,omitempty"`
	AtMost  *float64         `json:"atMost,omitempty"`
	AtLeast *float64         `json:"atLeast,omitempty"`
	HPASync *metav1.Duration `json:"hpaSync,omitempty"`
}

// Load reads a scenario; the error names the file and what is wrong.
func Load(path string) (Scenario, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return Scenario{}, err
	}
	s, err := Parse(data)
	if err != nil {
		return Scenario{}, fmt.Errorf("%s: %w", path, err)
	}
	s.Name = strings.TrimSuffix(filepath.Base(path), ".yaml")
	return s, nil
}

// Parse reads a scenario strictly (an unknown key is an error) and fills in the defaults.
func Parse(data []byte) (Scenario, error) {
	var s Scenario
	if err := yaml.UnmarshalStrict(data, &s); err != nil {
		return Scenario{}, err
	}
	if len(s.HPASync) == 0 {
		s.HPASync = []metav1.Duration{{Duration: 15 * time.Second}}
	}
	if s.Flush.Duration == 0 {
		s.Flush.Duration = 5 * time.Second
	}
	s.Repeat = max(1, s.Repeat)
	for i := range s.Lanes {
		lane := &s.Lanes[i]
		if lane.Namespace == "" {
			lane.Namespace = "test"
		}
		lane.Replicas = max(1, lane.Replicas)
		if lane.Load == nil {
			lane.Load = s.Load
		}
	}
	return s, s.validate()
}

func (s Scenario) validate() error {
	var errs []error
	if len(s.Lanes) == 0 {
		errs = append(errs, errors.New("lanes: none"))
	}
	for i, lane := range s.Lanes {
		if err := lane.Load.Validate(); err != nil {
			errs = append(errs, fmt.Errorf("lanes[%d]: %w", i, err))
		}
		if lane.PerReplica <= 0 {
			errs = append(errs, fmt.Errorf("lanes[%d]: perReplica must be above 0", i))
		}
		if (lane.HPA.File == "") == (lane.HPA.Manifest == "") {
			errs = append(errs, fmt.Errorf("lanes[%d].hpa: either file or manifest", i))
		}
	}
	for i, a := range s.Actions {
		if known := []string{RestartMeshpulse, RollMeshpulse, DeletePods, Rollout}; !slices.Contains(known, a.Do) {
			errs = append(errs, fmt.Errorf("actions[%d]: %q is none of %s", i, a.Do, strings.Join(known, ", ")))
		}
	}
	needsTwo := s.Oracle || slices.ContainsFunc(s.Actions, func(a Action) bool { return a.Do == RollMeshpulse }) ||
		slices.ContainsFunc(s.Lanes, func(l Lane) bool { return l.FirstOwnerKilled.Duration > 0 })
	if needsTwo && !s.TwoReplicas {
		errs = append(errs, errors.New("oracle, roll-meshpulse and firstOwnerKilled need twoReplicas"))
	}
	for i, c := range s.Checks {
		if err := c.validate(); err != nil {
			errs = append(errs, fmt.Errorf("checks[%d]: %w", i, err))
		}
	}
	return errors.Join(errs...)
}

func (c Check) validate() error {
	kinds := 0
	for _, bounds := range [][]int{c.Desired, c.Ready} {
		if bounds != nil {
			kinds++
			if len(bounds) != 2 || bounds[0] > bounds[1] {
				return errors.New("bounds are [least, most]")
			}
		}
	}
	for _, text := range []string{c.Event, c.Condition} {
		if text != "" {
			kinds++
		}
	}
	if c.Measure != "" {
		kinds++
		if c.AtMost == nil && c.AtLeast == nil {
			return errors.New("measure needs atMost or atLeast")
		}
	}
	if c.Times < 0 || c.Times > 0 && c.Event == "" {
		return errors.New("times is of an event, 1 or more")
	}
	if kinds != 1 {
		return errors.New("exactly one of desired, ready, event, condition and measure")
	}
	return nil
}

// Expanded is the lanes with Repeat applied: namespaces test-1, test-2 and so on.
func (s Scenario) Expanded() []Lane {
	if s.Repeat == 1 {
		return s.Lanes
	}
	var all []Lane
	for _, lane := range s.Lanes {
		for i := range s.Repeat {
			copied := lane
			copied.Namespace = fmt.Sprintf("%s-%d", lane.Namespace, i+1)
			all = append(all, copied)
		}
	}
	return all
}

// actingHistory is what a surge's baseline needs to have seen before the first step.
const actingHistory = 5 * time.Minute

// Acting is the scenario with targets that are raised at surges: every lane's HPA asks for it,
// meshpulse may, and the first rate of every load is held for as long as the baseline needs.
func (s Scenario) Acting() Scenario {
	s.Components = append(slices.Clone(s.Components), "surge-action")
	s.Lanes = slices.Clone(s.Lanes)
	longest := time.Duration(0)
	for i := range s.Lanes {
		lane := &s.Lanes[i]
		annotations := map[string]string{"meshpulse.io/surge-action": "scale"}
		maps.Copy(annotations, lane.HPA.Annotations)
		lane.HPA.Annotations = annotations
		lane.Load = slices.Clone(lane.Load)
		missing := max(0, actingHistory-lane.Load[0].For.Duration)
		lane.Load[0].For.Duration += missing
		longest = max(longest, missing)
	}
	s.MeasureFrom.Duration += longest
	return s
}

// Object reads the lane's HPA from its file (below root) or manifest and moves it to the lane's
// namespace.
func (l Lane) Object(root string) (*autoscalingv2.HorizontalPodAutoscaler, error) {
	text := []byte(l.HPA.Manifest)
	if l.HPA.File != "" {
		var err error
		if text, err = os.ReadFile(filepath.Join(root, l.HPA.File)); err != nil {
			return nil, err
		}
	}
	hpa, err := l.read(text)
	if err != nil {
		return nil, err
	}
	if hpa.Annotations == nil {
		hpa.Annotations = map[string]string{}
	}
	maps.Copy(hpa.Annotations, l.HPA.Annotations)
	if l.HPA.Behavior != nil {
		hpa.Spec.Behavior = l.HPA.Behavior
	}
	return hpa, nil
}

// Others reads the HPAs beside the lane's.
func (l Lane) Others() ([]*autoscalingv2.HorizontalPodAutoscaler, error) {
	var all []*autoscalingv2.HorizontalPodAutoscaler
	for _, manifest := range l.Beside {
		hpa, err := l.read([]byte(manifest))
		if err != nil {
			return nil, err
		}
		all = append(all, hpa)
	}
	return all, nil
}

// read moves an HPA to the lane's namespace.
func (l Lane) read(text []byte) (*autoscalingv2.HorizontalPodAutoscaler, error) {
	hpa := &autoscalingv2.HorizontalPodAutoscaler{}
	if err := yaml.UnmarshalStrict(text, hpa); err != nil {
		return nil, fmt.Errorf("HPA of lane %s: %w", l.Namespace, err)
	}
	hpa.Namespace = l.Namespace
	for key, value := range hpa.Annotations {
		hpa.Annotations[key] = strings.ReplaceAll(value, `namespace="test"`, `namespace="`+l.Namespace+`"`)
	}
	return hpa, nil
}

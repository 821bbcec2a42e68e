package explain

import (
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

// The API that serves explanations, as kubectl knows it.
const (
	Group      = "meshpulse.io"
	Version    = "v1alpha1"
	APIVersion = Group + "/" + Version
)

// Resource is one of the group's.
func Resource(name string) schema.GroupResource {
	return schema.GroupResource{Group: Group, Resource: name}
}

// Explanation is why an HPA's metrics have the values that they have. A field that is left out is
// not known, or there is none of it. Quantities are in Kubernetes' form (10056m).
type Explanation struct {
	metav1.TypeMeta `json:",inline"`
	// The HPA's name and namespace.
	metav1.ObjectMeta `json:"metadata"`
	// At is the instant that is explained, Now when that was done.
	At  time.Time `json:"at"`
	Now time.Time `json:"now"`
	// Standalone: HPAs come from files, and nobody knows pods and replicas.
	Standalone bool `json:"standalone,omitempty"`

	Target      string `json:"target"` // Deployment/podinfo
	MinReplicas int32  `json:"minReplicas"`
	MaxReplicas int32  `json:"maxReplicas"`
	// Replicas are what the target has.
	Replicas Replicas `json:"replicas"`
	// Metrics are in the order of the HPA's spec.
	Metrics []Metric `json:"metrics"`
	// Others counts metrics of the HPA that are others' business (CPU, memory, …).
	Others int `json:"others,omitempty"`
	// Decision is what the controller makes of the metrics now.
	Decision *Decision `json:"decision,omitempty"`
	// Troubles are what is wrong, the worst first.
	Troubles []Trouble `json:"troubles,omitempty"`
	// Events are the Warning events that stand for the HPA.
	Events []hpas.Problem `json:"events,omitempty"`
}

// List is many explanations, without their pods.
type List struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata"`
	Items           []Explanation `json:"items"`
}

// Replicas are an HPA's target's.
type Replicas struct {
	// Spec is what it is meant to have, Status what it has.
	Spec   int32 `json:"spec"`
	Status int32 `json:"status"`
	// From says where they are read: scale, status (of the HPA) or sidecars (those that report).
	From string `json:"from"`
}

// Rule is how an answer follows from what is seen.
type Rule string

const (
	RuleSeen      Rule = "seen"      // the expression's own value
	RuleIdle      Rule = "idle"      // 0, since it is known that there was no request
	RuleEarlier   Rule = "earlier"   // as of the newest time that every sidecar has covered
	RuleSurge     Rule = "surge"     // the rate in a surge
	RuleMore      Rule = "more"      // what is known is incomplete, and what is seen asks for more replicas all the same
	RuleEstimated Rule = "estimated" // mute sidecars count as the mean of the others
	RuleHeld      Rule = "held"      // what keeps the replicas
	RuleRaised    Rule = "raised"    // what keeps the replicas that a surge has raised
	RuleRefused   Rule = "refused"   // no answer
)

// Metric is one metric of an HPA.
type Metric struct {
	Name     string `json:"name"`
	Selector string `json:"selector,omitempty"`
	// Type is Pods or Object for a metric that is not served, "" for an External one.
	Type string `json:"type,omitempty"`
	// Expression is the PromQL as it is understood.
	Expression string `json:"expression,omitempty"`
	// TargetType is AverageValue or Value, Target the quantity.
	TargetType string `json:"targetType"`
	Target     string `json:"target"`

	// Value is what is answered, "" where Error says why nothing is.
	Value string `json:"value,omitempty"`
	Error string `json:"error,omitempty"`
	// Seen is what the expression gives by itself, before pods and surges are looked at.
	Seen string `json:"seen,omitempty"`
	Rule Rule   `json:"rule"`
	// Reason says for which pods the rule applies.
	Reason string `json:"reason,omitempty"`
	// Displayed is value and target as kubectl get hpa prints them.
	Displayed string `json:"displayed"`
	// HeldSince is since when it has been held, as far as the last hour tells.
	HeldSince *time.Time `json:"heldSince,omitempty"`

	// WindowSeconds is how far the expression looks back, CoveredSeconds how much of that is known.
	WindowSeconds  float64 `json:"windowSeconds"`
	CoveredSeconds float64 `json:"coveredSeconds"`
	// FlushSeconds is the longest flush interval of the sidecars.
	FlushSeconds float64 `json:"flushSeconds,omitempty"`
	// AgeSeconds is how old the newest sample is.
	AgeSeconds *float64 `json:"ageSeconds,omitempty"`
	// Series counts the series that the expression's selectors match.
	Series int `json:"series"`
	// Reporting of Expected sidecars have reported lately.
	Reporting int `json:"reporting"`
	Expected  int `json:"expected"`
	// Proven of the reporting ones have shown with a certificate who they are; nil where ingest
	// does not ask for it.
	Proven *int `json:"proven,omitempty"`

	// Pods are those that it means, at most MaxPods, the doubtful ones first; PodsLeftOut counts
	// the rest.
	Pods        []Pod `json:"pods,omitempty"`
	PodsLeftOut int   `json:"podsLeftOut,omitempty"`
	// Surge is the surge test; nil where the metric is not watched for any.
	Surge *Surge `json:"surge,omitempty"`
	// Asks is what the controller makes of this metric alone, before windows, policies and limits;
	// nil without a value or a target.
	Asks *Asks `json:"asks,omitempty"`
	// History are the decisions of the last hour, the oldest first.
	History []Point `json:"history,omitempty"`
	// Shadow compares it with what another has; nil where nothing is compared.
	Shadow *Shadow `json:"shadow,omitempty"`
}

// MaxPods bounds the pods of a metric that are told one by one.
const MaxPods = 100

// State is what is known of a pod.
type State string

const (
	StateReporting State = "reporting"
	StateYoung     State = "young"     // reports, and began within the window
	StatePartial   State = "partial"   // reports, and not all of the window is known
	StateUnheard   State = "unheard"   // has not reported since it began; it is waited for
	StateAbsent    State = "absent"    // has not come back since meshpulse started; it is waited for
	StateSilent    State = "silent"    // reported, and does not any more; it is waited for
	StateMute      State = "mute"      // has not reported for longer than it is waited for
	StateUnwired   State = "unwired"   // has no sidecar
	StateUnpointed State = "unpointed" // has a sidecar that never reported, as all of its workload
	StateRefused   State = "refused"   // samples of it are refused
	StateContested State = "contested" // two senders report as it
	StateLeft      State = "left"      // deleted, and not all is known that it served
)

// States are all of them, the worst first.
func States() []State {
	return []State{
		StateContested, StateRefused, StateSilent, StateAbsent, StateMute, StateUnpointed, StateUnwired, StateUnheard,
		StateLeft, StatePartial, StateYoung, StateReporting,
	}
}

// Pod is a pod that a metric means.
type Pod struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Workload  string `json:"workload,omitempty"`
	State     State  `json:"state"`
	// LastFlush is the time of its newest flush.
	LastFlush *time.Time `json:"lastFlush,omitempty"`
	Created   *time.Time `json:"created,omitempty"`
	// Value is the expression over this pod alone.
	Value string `json:"value,omitempty"`
	// Proven: it has shown with a certificate who it is; nil where that is not asked or not known.
	Proven *bool `json:"proven,omitempty"`
	// Why says more of its state.
	Why string `json:"why,omitempty"`
}

// Surge is the test for a surge.
type Surge struct {
	// Active: a surge is on; Answered: the value is its rate.
	Active   bool `json:"active"`
	Answered bool `json:"answered"`
	// Ready: there is enough history to tell one.
	Ready bool `json:"ready"`
	// Ratio and TailLimit are the thresholds: so many times the baseline, and no likelier by chance
	// than that for one test a flush of 5 s. WindowSeconds is how much of the newest past is
	// tested.
	Ratio         float64 `json:"ratio"`
	TailLimit     float64 `json:"tailLimit"`
	WindowSeconds float64 `json:"windowSeconds"`
	// Rate and Baseline are counts per second in the surge and before it, Tail how likely that is
	// by chance. Without a surge they are left out.
	Rate     float64    `json:"rate,omitempty"`
	Baseline float64    `json:"baseline,omitempty"`
	Tail     float64    `json:"tail,omitempty"`
	Since    *time.Time `json:"since,omitempty"`
	// Action is the HPA's meshpulse.io/surge-action, "" for off.
	Action string `json:"action,omitempty"`
}

// TailLimit is how unlikely by chance so many requests have to be for a surge
// (aggregator/internal/surge).
const TailLimit = 3e-9

// Asks is the controller's arithmetic for one metric.
type Asks struct {
	Replicas int32 `json:"replicas"`
	// Ratio is the value by its target (AverageValue: by target and replicas); within the tolerance
	// the metric asks for what there is.
	Ratio           float64 `json:"ratio"`
	WithinTolerance bool    `json:"withinTolerance,omitempty"`
}

// Decision is what the controller makes of all metrics.
type Decision struct {
	// Replicas is what it will ask for.
	Replicas int32 `json:"replicas"`
	// Recommended is the largest number that a metric asks for, Stabilized what the windows leave
	// of it. Both are 0 where Why says that the metrics are not asked.
	Recommended int32 `json:"recommended,omitempty"`
	Stabilized  int32 `json:"stabilized,omitempty"`
	// Bound is what limits the change: minReplicas, maxReplicas, step or policy.
	Bound string `json:"bound,omitempty"`
	// Why says why the replicas stay, whatever the metrics' values are.
	Why string `json:"why,omitempty"`
	// Tolerance is the controller's, as far as is known; DownscaleSeconds its scale-down window.
	ToleranceUp      float64 `json:"toleranceUp"`
	ToleranceDown    float64 `json:"toleranceDown"`
	DownscaleSeconds float64 `json:"downscaleSeconds"`
}

// Point is one decision on a metric.
type Point struct {
	At time.Time `json:"at"`
	// Seen and Answered are what the expression gave and what was answered, nil where nothing.
	Seen     *float64 `json:"seen,omitempty"`
	Answered *float64 `json:"answered,omitempty"`
	Rule     Rule     `json:"rule"`
	// Baseline is what the expression would give without the surge whose rate is answered, nil
	// where none is.
	Baseline *float64 `json:"baseline,omitempty"`
	// Wanted is what the metric asked for, Asked what the HPA did, by its status, and Replicas what
	// there were; 0 where that is not known.
	Wanted   int32 `json:"wanted,omitempty"`
	Asked    int32 `json:"asked,omitempty"`
	Replicas int32 `json:"replicas,omitempty"`
}

// Trouble is something that is wrong, with what helps.
type Trouble struct {
	// Kind is one of a closed set: see the constants.
	Kind Kind `json:"kind"`
	// What, Cause and Remedy are sentences.
	What   string `json:"what"`
	Cause  string `json:"cause"`
	Remedy string `json:"remedy"`
}

// Kind names a trouble.
type Kind string

const (
	KindSharedTarget Kind = "SharedTarget" // the controller acts on none of several HPAs
	KindUnwired      Kind = "Unwired"      // no pod that is meant reports
	KindNoAnswer     Kind = "NoAnswer"     // a metric has no value
	KindWrongUnit    Kind = "WrongUnit"    // milliseconds against seconds
	KindHeld         Kind = "Held"         // the answer keeps the replicas
	KindSilent       Kind = "Silent"       // sidecars do not report
	KindSurge        Kind = "Surge"        // more load than before
	KindDoubtful     Kind = "Doubtful"     // a Warning event of another kind
)

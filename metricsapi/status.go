package metricsapi

import "time"

// Status is the state of every metric of every HPA, as /debug/hpas shows it in JSON.
type Status struct {
	// Time is when it was looked at.
	Time time.Time `json:"time"`
	// Metrics are in the order of namespace, HPA, place in the HPA's spec.
	Metrics []MetricStatus `json:"metrics"`
}

// MetricStatus is one external metric of one HPA. Quantities are in Kubernetes' form (10056m).
type MetricStatus struct {
	Namespace  string `json:"namespace"`
	HPA        string `json:"hpa"`
	Metric     string `json:"metric"`
	Selector   string `json:"selector"`
	Expression string `json:"expression,omitempty"`
	// TargetType is AverageValue or Value, Target the quantity.
	TargetType string `json:"targetType"`
	Target     string `json:"target"`
	// Value is the sum of the answer's items, "" where Error says why there is none.
	Value string `json:"value,omitempty"`
	Error string `json:"error,omitempty"`
	// Displayed is value and target as kubectl get hpa prints them: 10056m/10 (avg).
	Displayed string `json:"displayed"`
	// CurrentReplicas are the HPA's (status.currentReplicas); in standalone mode the reporting sidecars stand in for them.
	CurrentReplicas int32 `json:"currentReplicas"`
	MinReplicas     int32 `json:"minReplicas"`
	MaxReplicas     int32 `json:"maxReplicas"`
	// DesiredReplicas is what this metric alone would ask for, within the limits and without the controller's tolerance;
	// 0 without a value.
	DesiredReplicas int32 `json:"desiredReplicas"`
	// AgeSeconds is how old the newest sample is; nil if none went in.
	AgeSeconds *float64 `json:"ageSeconds,omitempty"`
	// Reporting of Expected sidecars that could have the series have reported lately.
	Reporting int `json:"reporting"`
	Expected  int `json:"expected"`
	// CoveredSeconds of the WindowSeconds that the expression looks back are known.
	CoveredSeconds float64 `json:"coveredSeconds"`
	WindowSeconds  float64 `json:"windowSeconds"`
	// Events are the Warning events of the HPA as a whole.
	Events []Problem `json:"events,omitempty"`
}

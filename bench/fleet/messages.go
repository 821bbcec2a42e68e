package fleet

// Messages are what one sidecar after the other sends, for who wants the bytes without a
// connection. Not safe for concurrent use.
type Messages struct{ template *template }

// NewMessages encodes them, as [Config.LabelSets], [Config.Busiest] and [Config.Labels] say.
func NewMessages(labelSets, busiest int, asLabels bool) (*Messages, error) {
	t, err := newTemplate(newTraffic(labelSets, busiest), asLabels)
	if err != nil {
		return nil, err
	}
	return &Messages{t}, nil
}

// Append appends a pod's flush of the number, counted from 0, with the timestamp in milliseconds.
// The first one names the pod.
func (m *Messages) Append(b []byte, workload, pod int, number, timestamp int64) []byte {
	if number == 0 {
		b = append(b, m.template.identify(workload, pod, 0)...)
	}
	from := len(b)
	ahead := m.template.traffic.ahead(pod)
	b = append(b, m.template.flush(number, ahead).families...)
	m.template.patch(b[from:], timestamp, workload, number, ahead)
	return b
}

package aggregator

// bounded is a map that holds the keys that were kept last, up to a limit.
type bounded[K comparable, V any] struct {
	values map[K]lasting[V]
	order  []placed[K] // as they were kept; a place whose number is not the key's own is from before
	number uint64
}

type lasting[V any] struct {
	value  V
	number uint64
}

type placed[K comparable] struct {
	key    K
	number uint64
}

// keep makes the value the newest one's, and reports whether the oldest was given up for it.
func (b *bounded[K, V]) keep(k K, v V, limit int) (gaveUp bool) {
	if b.values == nil {
		b.values = map[K]lasting[V]{}
	}
	b.number++
	b.values[k] = lasting[V]{v, b.number}
	b.order = append(b.order, placed[K]{k, b.number})
	for len(b.values) > limit {
		oldest := b.order[0]
		b.order = b.order[1:]
		if b.values[oldest.key].number == oldest.number {
			delete(b.values, oldest.key)
			gaveUp = true
		}
	}
	if len(b.order) > 2*len(b.values)+16 { // most are from before
		b.tidy()
	}
	return gaveUp
}

func (b *bounded[K, V]) tidy() {
	order := make([]placed[K], 0, len(b.values))
	for _, p := range b.order {
		if b.values[p.key].number == p.number {
			order = append(order, p)
		}
	}
	b.order = order
}

func (b *bounded[K, V]) get(k K) (V, bool) {
	v, ok := b.values[k]
	return v.value, ok
}

func (b *bounded[K, V]) forget(k K) { delete(b.values, k) }

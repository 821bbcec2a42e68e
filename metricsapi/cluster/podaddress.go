package cluster

import (
	"hash/maphash"
	"net/netip"
	"sync/atomic"

	corev1 "k8s.io/api/core/v1"
)

// Whose an address is. A pod's address is its own while it has not finished, so what comes from it
// comes from that pod, with whichever name. Pods on their node's network share its addresses: one
// of them is as good as another there. Of two pods that are said to have one address the newer has
// it: the other one's end has not been told yet.

// addressKey is an address of either family in 16 bytes.
type addressKey [16]byte

func keyOf(a netip.Addr) addressKey { return a.As16() }

// addressesOf returns a pod's addresses, none of one that has finished: others may have them by
// now.
func addressesOf(p *corev1.Pod) (keys [2]addressKey) {
	if p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		return keys
	}
	n := 0
	for _, ip := range p.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil && n < len(keys) {
			keys[n] = keyOf(a)
			n++
		}
	}
	return keys
}

// has reports whether the pod has the address, alone or with others of its node.
func (c *cachedPod) has(k addressKey) bool {
	return k != addressKey{} && (c.addresses[0] == k || c.addresses[1] == k)
}

// podAddresses are the pods by the addresses that are theirs alone. They are kept by a hash, in two
// thirds of the memory: a pod that is found has to have the address. Its mutex is the index'.
type podAddresses struct {
	pods    map[uint64]*cachedPod
	seed    maphash.Seed
	changes atomic.Uint64 // of pods, their addresses, and whether they leave
}

func newPodAddresses() podAddresses {
	return podAddresses{pods: map[uint64]*cachedPod{}, seed: maphash.MakeSeed()}
}

func (as *podAddresses) hash(k addressKey) uint64 { return maphash.Bytes(as.seed, k[:]) }

// at returns the pod that has the address alone, nil if none is known.
func (as *podAddresses) at(k addressKey) *cachedPod {
	if c := as.pods[as.hash(k)]; c != nil && c.has(k) {
		return c
	}
	return nil
}

// come notes the addresses of a pod that is there.
func (as *podAddresses) come(c *cachedPod) {
	as.changes.Add(1)
	as.put(c)
}

func (as *podAddresses) put(c *cachedPod) {
	if c.node {
		return
	}
	for _, k := range c.addresses {
		if was := as.at(k); k != (addressKey{}) && (was == nil || was.created <= c.created) {
			as.pods[as.hash(k)] = c
		}
	}
}

// change puts what is known now of a pod in the place of what was.
func (as *podAddresses) change(old, now *cachedPod) {
	if old.addresses != now.addresses || old.node != now.node || old.created != now.created || (old.left == 0) != (now.left == 0) {
		as.changes.Add(1)
	}
	as.take(old)
	as.put(now)
}

// leave forgets the addresses of a pod that is gone.
func (as *podAddresses) leave(c *cachedPod) {
	as.changes.Add(1)
	as.take(c)
}

func (as *podAddresses) take(c *cachedPod) {
	for _, k := range c.addresses {
		if was := as.at(k); was != nil && was.name == c.name && was.namespace() == c.namespace() {
			delete(as.pods, as.hash(k))
		}
	}
}

// Holder returns whose an address is: the pod's that is named, or another one's. With neither it is
// nobody's that is known: a node's, a network's that translates addresses, or a pod's that is not
// known yet. A pod that is being deleted may have given its address back.
func (x *Pods) Holder(namespace, name string, address netip.Addr) (own bool, other string) {
	k := keyOf(address)
	x.mu.RLock()
	c := x.addresses.at(k)
	x.mu.RUnlock()
	switch {
	case c != nil && c.name == name && c.namespace() == namespace:
		return true, ""
	case c != nil && c.left == 0:
		return false, c.namespace() + "/" + c.name
	}
	o, _, _ := x.informer.GetStore().GetByKey(namespace + "/" + name) // the error is of a key that cannot be read
	c, ok := o.(*cachedPod)
	return ok && c.has(k), ""
}

// Changes is how often what Holder says may have changed so far.
func (x *Pods) Changes() uint64 { return x.addresses.changes.Load() }

// InStep reports whether what is known is as the API server has it now.
func (x *Pods) InStep() bool { return x.Read() == nil && x.fresh.watching() }

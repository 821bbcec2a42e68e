package main

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/meshpulse/meshpulse/bench/lab/chaos"
	"github.com/meshpulse/meshpulse/bench/lab/cluster"
)

// What a chaos run starts of meshpulse, one or two, and what of it can go wrong.

// chaosSource starts one meshpulse or two, and tells what goes wrong in them.
func (l *lab) chaosSource(ctx context.Context, c *cluster.Cluster, dir string, options meshpulseOptions, count int, system *chaos.System) (source, []*meshpulse, error) {
	if count < 2 {
		m, err := installMeshpulse(ctx, l, c, dir, options)
		if err != nil {
			return nil, nil, err
		}
		system.Ingest, system.Names = m.ingest, m.names()
		system.Replicas = []chaos.Replica{{Dir: m.dir, Kill: m.kill, Launch: m.launch, Pause: m.pause}}
		return m, []*meshpulse{m}, nil
	}
	p, err := installPair(ctx, l, c, dir, options)
	if err != nil {
		return nil, nil, err
	}
	system.Ingest, system.Names = p.sink(), slices.Concat(p.replicas[0].names(), p.replicas[1].names())
	for i, m := range p.replicas {
		system.Replicas = append(system.Replicas, chaos.Replica{
			Dir: m.dir, Kill: func() { p.kill(i) }, Launch: func() error { return p.launch(i) }, Pause: m.pause, Peers: p.peers[i], Sidecars: p.ingests[i],
		})
	}
	return p, p.replicas[:], nil
}

// chaosOptions are meshpulse's in a chaos run. Without the component for it a surge does not act.
func (l *lab) chaosOptions() meshpulseOptions {
	o := meshpulseOptions{flags: []string{"--hold=" + chaosHold.String(), "--retention=" + chaosRetention.String(), "--max-series=" + strconv.Itoa(chaosBudget)}}
	if _, err := os.Stat(filepath.Join(l.root, "manifests", "components", surgeAction)); err == nil {
		o.components = append(o.components, surgeAction)
	}
	return o
}

// surgeAction is the component with the right to scale, and the annotation's name.
const surgeAction = "surge-action"

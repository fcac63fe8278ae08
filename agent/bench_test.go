package agent

import (
	"testing"

	"github.com/holdfast-backup/holdfast/ingest/wire"
	"github.com/holdfast-backup/holdfast/internal/clock"
)

// BenchmarkKnownData reads a disk whose content the pool has: the rate of "nothing is new", over loopback, both ends here.
func BenchmarkKnownData(b *testing.B) {
	x := newBench(b).run()
	x.house.noKeep, x.host.still = true, true
	data := make([]byte, 1<<30)
	for at := 0; at < len(data); at += 64 << 20 {
		copy(data[at:], content(uint64(at), 64<<20))
	}
	vm := x.host.addVM("a", data)
	x.backup(vm, x.grantFor(vm, "adaptive", "off"))
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		g := x.grantFor(vm, "adaptive", "off")
		g.began.Full, g.began.Parent = true, nil
		x.backup(vm, g)
	}
}

// BenchmarkPipelineKnown is the pipeline alone, answered at once.
func BenchmarkPipelineKnown(b *testing.B) { benchmarkPipeline(b, false) }

// BenchmarkPipelineNew is the pipeline alone with s2, everything missing.
func BenchmarkPipelineNew(b *testing.B) { benchmarkPipeline(b, true) }

func benchmarkPipeline(b *testing.B, missing bool) {
	x := newBench(b)
	data := make([]byte, 1<<30)
	for at := 0; at < len(data); at += 64 << 20 {
		copy(data[at:], content(uint64(at), 64<<20))
	}
	vm := x.host.addVM("a", data)
	e := newEngine(0)
	defer e.close()
	f := &frozenDisk{h: x.host, d: vm.disks[0], data: data}
	began := wire.Began{Full: true}
	plan, err := planDisk(b.Context(), clock.System, f, &began)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		p := testPipeline(b, e, f, plan.work)
		p.link = answering{p, missing}
		if err := p.run(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

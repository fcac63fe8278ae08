package parity

import (
	"context"
	"fmt"
	"testing"

	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/pools/blob"
	"github.com/holdfast-backup/holdfast/pools/blob/blobtest"
	"github.com/holdfast-backup/holdfast/pools/blob/s3store"
	"github.com/holdfast-backup/holdfast/pools/blob/s3store/s3test"
)

// A stripe over buckets of a real server, one of which goes away while it is used.
func TestAStripeOverBucketsOutlivesOne(t *testing.T) {
	server := s3test.Start(t)
	var members []blob.Store
	for i := range 3 {
		c := s3store.Config{Endpoint: server.URL, Bucket: fmt.Sprintf("member-%d", i), Region: "us-east-1", Style: s3store.PathStyle, CA: server.CA.PEM,
			AccessKey: s3store.Secret(server.AccessKey), SecretKey: s3store.Secret(server.SecretKey), Spill: fsys.NewMem(1), Retry: blob.Policy{Attempts: 1}}
		if err := s3store.MakeBucket(background, c, false); err != nil {
			t.Fatal(err)
		}
		s, err := s3store.Open(background, c)
		if err != nil {
			t.Fatal(err)
		}
		members = append(members, s)
	}
	away := blob.NewFault(members[1])
	members[1] = away
	var told events
	s, err := Create(background, members, 2, 1, Options{Block: small, Listener: told.listen})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	fill(t, s)
	verify(t, s)
	for _, v := range []blob.Verb{blob.VerbCreate, blob.VerbOpen, blob.VerbList, blob.VerbExists, blob.VerbRemove, blob.VerbRead} {
		away.Inject(blob.FaultRule{Verb: v, Times: -1, Err: context.DeadlineExceeded})
	}
	verify(t, s)
	if err := blob.WriteAll(background, s, "late/one", blobtest.Content("late/one", 50_000)); err != nil {
		t.Fatal(err)
	}
	away.Clear()
	if err := s.Settle(background); err != nil { // the healer may have come before or after the bucket was back
		t.Fatal(err)
	}
	rep, err := s.Scrub(background, nil)
	if err != nil || len(rep.Unhealed) != 0 || told.count(EventShardHealed, "store 1") != 1 || told.count(EventShardHealed, "") != 1 {
		t.Errorf("scrub: %+v, %v, told %v; want the one shard healed", rep, err, told.all)
	}
	if err := blobtest.Whole(background, s, "late/one", 50_000); err != nil {
		t.Error(err)
	}
}

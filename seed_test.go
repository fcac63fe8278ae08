package holdfast_test

import (
	"flag"
	"fmt"
	"go/ast"
	"os"
	"path"
	"strings"
	"testing"
)

var updateSeed = flag.Bool("update-seed", false, "write docs/seed-coverage.md anew")

// A seedEntry is one numbered statement of the products that this one is compared with, and what proves ours. Tests are named as
// folder.TestName; what is not built names the part that will bring it.
type seedEntry struct {
	no    int
	text  string
	tests string
	open  string
}

// openParts are the parts under whose names entries may be open.
var openParts = []string{"LAN-free", "replication", "console", "Windows installer"}

const (
	oracle   = "appliance/schedule.TestNextAgreesWithTheOracle"
	options  = "appliance/job.TestOptionsHaveTheirDefaultsAndBounds"
	matrix   = "appliance.TestRestoreMatrix"
	disk     = "appliance.TestADiskIsRestoredAndTheOthersStay"
	follows  = "appliance.TestAJobFollowsItsHost"
	shares   = "appliance.TestVMsAndJobsShareAHost"
	stopped  = "appliance.TestStoppedAtAnyInstantNothingIsLeft"
	scripts  = "appliance.TestScriptsFrameAJob"
	group    = "appliance.TestDifferentialAndGroup"
	cuts     = "appliance.TestCutsWithinTheReconnectionTimeCostAtMostTheBuffer"
	speed    = "agent.TestSpeedLimitsHoldInEachWindow"
	verdicts = "appliance/restore.TestPreflightTellsVerdictAndReason"
	several  = "appliance.TestSeveralVMsAndPointsInTime"
	rounds   = "cmd/e2e.TestThirtyRoundsOfForeignWrites"
	faults   = "cmd/e2e.TestLabFaults"
	parallel = "appliance.TestFourVMsAreRestoredInParallel"
)

var seed = []seedEntry{
	{7, "backup types full and incremental", follows + " " + group, ""},
	{8, "transport over the network and over the SAN", rounds, "LAN-free"},
	{9, "targets: standard, deduplication, object storage; tape, LAN-free pools", "cmd/e2e.TestEveryKindOfPool cmd/holdfast.TestTapePoolFromBackupToTakeOver", "LAN-free"},
	{10, "schedules: immediate, one-time, hourly, daily, weekly, monthly", oracle + " appliance.TestSchedulesStartJobs appliance.TestImmediateJobsStartWhenTheyAreCreated", ""},
	{11, "compression, channels, reconnection, speed limit; replication", options + " " + cuts + " " + speed, "replication"},
	{12, "restore of virtual machines and virtual disks", matrix + " " + disk, ""},
	{13, "IPv4 and IPv6", "appliance.TestAgentsComeByIPv6", ""},
	{28, "data network", "appliance.TestDataGoesThroughTheDataNetwork", ""},
	{29, "preferred egress address of a host", "appliance.TestDataLeavesFromTheEgressAddress", ""},
	{34, "full: all disks at a point in time", rounds, ""},
	{35, "incremental: what changed since the last backup", rounds, ""},
	{36, "weekly full and daily incremental", "appliance.TestSchedulesStartJobs", ""},
	{37, "immediate: starts when it is created", "appliance.TestImmediateJobsStartWhenTheyAreCreated", ""},
	{38, "one-time", "appliance/schedule.TestOnceRunsOnce", ""},
	{39, "hourly, every N hours or minutes in a window", oracle, ""},
	{40, "daily, every N days", oracle, ""},
	{41, "weekly, every N weeks on weekdays", oracle, ""},
	{42, "monthly, on dates or weekdays of chosen months", oracle + " appliance/schedule.TestRareDaysAreFound", ""},
	{43, "wizard", "", "console"},
	{44, "virtual machines found by name", "appliance/job.TestSourcesChooseByIDAndPattern", ""},
	{45, "browsing", "", "console"},
	{46, "choosing a range", "", "console"},
	{47, "filter that leaves virtual machines out", follows + " appliance/job.TestSourcesChooseByIDAndPattern", ""},
	{48, "one pool as target", follows, ""},
	{49, "name at the end of the wizard", "", "console"},
	{50, "jobs are started, changed, deleted", follows + " appliance.TestSchedulesStartJobs", ""},
	{51, "compression is fast unless said otherwise, at the source", options, ""},
	{52, "concurrent virtual machines, 8 unless said otherwise", options + " " + shares, ""},
	{53, "concurrent disks of a virtual machine", options, ""},
	{54, "reconnection time of 1 to 60 minutes", options + " " + cuts + " appliance.TestACutBeyondTheReconnectionTimeFails", ""},
	{55, "resumption buffer, 10 MiB unless said otherwise", options + " " + cuts, ""},
	{56, "speed limits by period, of transfer or of reading disks", speed + " agent.TestALimitEndsInTheMiddleOfAWait agent.TestWindowsMeanTheJobsZone", ""},
	{57, "precondition: aborted, and the job idle", scripts, ""},
	{58, "pre- and post-script", scripts + " agent.TestOnlyPlacedScriptsRun", ""},
	{59, "consistency crash, application, automatic", options + " " + faults, ""},
	{60, "application-consistent unless said otherwise", faults, ""},
	{61, "restore to another host, the original or a new path", matrix, ""},
	{62, "disk restore: overwrite, or new disks", disk, ""},
	{63, "needs a backup that is complete", stopped, ""},
	{64, "version of the target host", verdicts, ""},
	{65, "wizard", "", "console"},
	{66, "choice of the pool", several, ""},
	{67, "points in time for each virtual machine", several, ""},
	{68, "restore at once or at a time", "appliance.TestLaterRestoresSurviveRestarts", ""},
	{69, "original path", matrix, ""},
	{70, "new path", matrix, ""},
	{71, "rename, prefix, suffix", matrix, ""},
	{72, "folder for each disk", "appliance/restore.TestPlansMakeWhatWasAskedFor", ""},
	{73, "virtual switch for each adapter", matrix, ""},
	{74, "settings opened again in the wizard", "", "console"},
	{75, "new disk in a chosen folder", disk, ""},
	{76, "concurrent restores", parallel, ""},
	{77, "concurrent disks of a restore", "appliance.TestOptionsOfARestore", ""},
	{78, "existing virtual machines: suffix, overwrite, skip", matrix, ""},
	{79, "start after the restore", matrix, ""},
	{80, "network adapters of the original", matrix, ""},
	{81, "options of jobs for restores: reconnection, buffer, limits, scripts", "appliance.TestOptionsOfARestore", ""},
	{82, "limit lifted: differential", group, ""},
	{83, "limit lifted: groups of virtual machines", group + " agent.TestAGroupFreezesBeforeAnyReads", ""},
	{84, "limit lifted: the line goes on after an overwrite", "appliance.TestTheLineGoesOnAfterAnOverwrite", ""},
	{85, "limit lifted: stop while checkpoints are made", stopped, ""},
	{86, "stop while LAN-free disks are mounted", "", "LAN-free"},
	{87, "crash- and application-consistent checkpoints", faults, ""},
	{88, "no checkpoint stays after a job", stopped + " cmd/e2e.TestAgentKilledInTheMiddleOfAJob", ""},
	{89, "limit lifted: several jobs at once on a host", shares, ""},
	{90, "several virtual machines of a job in parallel", shares, ""},
	{91, "LAN-free over the SAN only", "", "LAN-free"},
	{92, "limit lifted: mount recovery", "cmd/e2e.TestASetIsUsedWithoutARestore cmd/e2e.TestEveryKindOfPool appliance.TestAMountedSetStays", ""},
	{93, "limit lifted: progress of each disk", "cmd/holdfast.TestProgressIsDrawnForPeople", ""},
	{94, "overwrite: original off, no checkpoints", verdicts, ""},
	{95, "versions: from low to high", verdicts, ""},
	{96, "limit lifted: a restore is stopped at any time", "appliance.TestAStoppedRestoreLeavesNothing", ""},
	{97, "limit lifted: restores in parallel", parallel, ""},
	{98, "Linux of generation 2 on old hosts", verdicts, ""},
	{99, "disks of Linux of generation 2", disk, ""},
	{100, "generations and controllers", verdicts, ""},
}

// TestSeedCoverage: every number has a test that is there, or names the part that is not built; the page says the same.
func TestSeedCoverage(t *testing.T) {
	have := map[string]bool{}
	for _, s := range sources(t) {
		for _, d := range s.file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && s.test && f.Recv == nil && strings.HasPrefix(f.Name.Name, "Test") {
				have[path.Clean(s.pkg)+"."+f.Name.Name] = true
			}
		}
	}
	want := []int{7, 8, 9, 10, 11, 12, 13, 28, 29}
	for n := 34; n <= 100; n++ {
		want = append(want, n)
	}
	if len(seed) != len(want) {
		t.Fatalf("%d entries, want %d", len(seed), len(want))
	}
	page := "# What the seeds describe, and the tests that prove it here\n\nWritten by `go test . -run TestSeedCoverage -update-seed` from the table in `seed_test.go`, which checks that every test named is there.\n" +
		"*Limit lifted* marks what the seed says it cannot do. An entry with both tests and an open part is built in part.\n\n| no. | what | tests | open in part |\n|---|---|---|---|\n"
	for i, e := range seed {
		if e.no != want[i] {
			t.Fatalf("S%d stands where S%d should", e.no, want[i])
		}
		known := e.open == ""
		for _, p := range openParts {
			known = known || p == e.open
		}
		if !known || e.tests == "" && e.open == "" {
			t.Errorf("S%d has neither a test nor a part that is known to be open (%q)", e.no, e.open)
		}
		var names []string
		for _, n := range strings.Fields(e.tests) {
			if !have[n] {
				t.Errorf("S%d: there is no test %s", e.no, n)
			}
			names = append(names, "`"+n+"`")
		}
		page += fmt.Sprintf("| S%d | %s | %s | %s |\n", e.no, e.text, strings.Join(names, " "), e.open)
	}
	const file = "docs/seed-coverage.md"
	if *updateSeed {
		if err := os.WriteFile(file, []byte(page), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if now, err := os.ReadFile(file); err != nil || string(now) != page {
		t.Errorf("%s is not what the table says (%v); write it anew with -update-seed", file, err)
	}
}

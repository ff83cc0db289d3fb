package wireguard_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/seed-86b749af/wireguard/internal/testkit"
)

// These lists say which tests cover a behavior. The list scenarios has the situations that every WireGuard implementation has to
// handle. The list decisions has the points that the whitepaper leaves open, or on which the kernel and other implementations
// differ; comments of tests call decision 1 "row 1". A test that is named without a package is in this package. TestCoverageNames
// checks the names.

// A covered has a behavior that must be tested, and the names of the tests that cover this behavior.
type covered struct {
	what  string
	tests string // names, separated by spaces
}

var scenarios = []covered{
	{"initiation retransmitted every REKEY_TIMEOUT and jitter", "TestInitiationRetransmitted TestJitterDiffers TestJitter"},
	{"give-up after 20 attempts, and not while packets arrive", "TestGiveUpAfterTwentyInitiations TestNoGiveUpWhilePacketsCome TestPersistentKeepaliveStartsNewSeries"},
	{"rekey on send at 120 s, by the initiator only", "TestRekeyOnSend TestRekeyOnKeepalive TestRekeyAfterMessages"},
	{"rekey on receive at 165 s, once", "TestRekeyOnReceive TestNoRekeyOnReceiveByResponder"},
	{"one passive keepalive, the need-another rule, no ping-pong", "TestPassiveKeepalive TestPassiveKeepaliveCancelled TestNeedAnotherKeepalive"},
	{"no answer to a keepalive", "TestKeepaliveAnsweredByNothing"},
	{"unanswered data counted from the first packet", "TestUnansweredData TestUnansweredCountsFromFirstDataPacket"},
	{"an answer that arrives before the send returns", "TestAnswerBeforeSendReturns TestUnansweredNotArmedOnceAnswered"},
	{"session silent at exactly 180 s on both sides", "TestSessionSilentAt180s TestReceiveAt180s"},
	{"wipe at 540 s and after give-up", "TestWipe TestWipeAfterLastSession TestWipeAfterGiveUp"},
	{"previous session still decrypts during rotation", "TestPreviousSessionDecryptsDuringRotation TestResponderSendsOnCurrentUntilConfirmed"},
	{"simultaneous initiations converge in time", "TestCrossingInitiationsHeal TestCrossingInitiationsHealUnderTraffic TestCrossingInitiationsOneLost TestCrossingInitiations"},
	{"initiator's immediate confirmation", "TestInitiatorConfirmsAtOnce"},
	{"responder flushes on confirmation", "TestResponderFlushesOnConfirmation TestLostConfirmationAndDataAtResponder"},
	{"delayed response to a superseded initiation", "TestResponseToSupersededInitiation"},
	{"replayed initiation refused", "TestReplayedInitiationRefused TestReplayedInitiationRefusedAfterWipeAndDown TestWireGuardGoReplay"},
	{"replayed response refused", "TestReplayedResponseRefused"},
	{"initiations too soon after each other", "TestInitiationTooSoon"},
	{"cookie under load, its expiry", "TestCookieUnderLoad TestNoCookieWithoutLoad TestCookieUsedFor115s TestCookieSecretLives120s TestFloodPutsUnderLoad TestFloodKeepsUnderLoad"},
	{"mac2 bound to address and port", "TestMAC2BoundToAddressAndPort"},
	{"no answer to a sender that does not know the public key", "TestNoAnswerWithoutMAC1"},
	{"cookie reply to a response", "TestCookieReplyToResponse"},
	{"cookie reply with a wrong mac1 ignored", "TestCookieReplyWithWrongMAC1Ignored"},
	{"rate limit under load", "TestRateLimitUnderLoad TestRateLimitIsPer64 ratelimit.TestLimiterBound"},
	{"window edges, far jumps, duplicates", "TestReplayWindow TestReplayTable TestReplayJumps TestReplayModel"},
	{"counter limit", "TestRejectAfterMessages TestCounterPasses32Bits"},
	{"persistent keepalive on idle and on active tunnels", "TestPersistentKeepaliveIdle TestPersistentKeepaliveActive"},
	{"keepalives that are due together are sent together", "TestKeepalivesTogether TestKeepalivesBeginTogether TestLoneDeadlineIsExact"},
	{"keepalive sent at once when persistent keepalive is turned on", "TestPersistentKeepaliveIdle TestPersistentKeepaliveMakesSession TestPersistentKeepaliveThenEndpoint"},
	{"roaming of either side and of both at once", "TestRoaming TestRoamingByKeepaliveAndHandshake TestBothRoamAtOnce TestBothRoamWithPacketsUnderWay TestRoamingBetweenFamilies"},
	{"endpoint unchanged by forged and by replayed packets", "TestEndpointUnchangedByForgedAndReplayed TestRefusedSourceIsAuthentic"},
	{"private key change mid-session", "TestPrivateKeyChange TestPrivateKeyChangeReceivesUntil180s TestPrivateKeyChangeUnderTraffic"},
	{"first private key on a device that is up", "TestFirstPrivateKeyOnUpDevice"},
	{"preshared key mismatch gives no session", "TestPresharedKeyMismatch TestPresharedKeySession"},
	{"peer removed with packets in flight", "TestPeerRemovedWithPacketsInFlight TestPeerRemovedAmidSend"},
	{"staged packets delivered in order after the handshake, none overtaken", "TestStagedInOrder TestQueue"},
	{"staging overflow drops the oldest", "TestStagingOverflow TestStagedBytesBound TestStageBounds TestStagedBytesShared"},
	{"a suspend of 1 s, 100 s, 200 s, 1 h in each role", "TestSuspend TestSuspendBoth TestSuspendAmidHandshakeInitiator TestSuspendAmidHandshakeResponder TestSuspendKeptAlive TestSuspendWhilePeerSends TestWakeRings"},
	{"clock set back", "TestClockSetBack TestClockStepLeavesTimersAlone TestCalendarsApart TestRestartWithClockSetBack"},
	{"loss of each single message of the handshake", "TestLossOfEachHandshakeMessage"},
	{"1 %, 10 %, 50 % loss", "TestLoss"},
	{"reordering", "TestReordering"},
	{"duplication", "TestDuplication"},
	{"NAT that expires its mapping", "TestNATExpiry TestNATRebind"},
	{"MTU that shrinks", "TestPathMTUShrinks udp.TestSmallMTU"},
	{"receive path with several peers in one batch", "TestSeveralPeersInOneBatch"},
	{"two devices of one process", "TestInitiatorConfirmsAtOnce netstack.TestBulk"}, // every scenario has two devices
	{"device as its own hop, tunnel in tunnel", "TestTunnelInTunnel TestEndpointInsideOwnTunnel TestEndpointMovesInsideOwnTunnel"},
	{"two senders to one peer keep order", "TestTwoSendersKeepOrder TestTwoSendersKeepOrderOnSlowSocket TestQueue"},
	{"everything at once", "TestStorm"},
	{"configuration of a device that runs", "TestFirewallMarkChange TestConfigureAllOrNothing TestReplacePeersKeepsSessions TestRemoveAndAddInOneChange TestUpdateOneField"},
}

var decisions = []covered{
	{"1 full queue: drop and count, never block", "TestFloodPutsUnderLoad TestFullSinkDrops TestAnswersHaveTheirOwnQueue"},
	{"2 no peer or no endpoint: ICMP to the inner sender, and no work on handshakes", "TestUnreachableEndToEnd TestUnreachableExceptionsEndToEnd TestUnreachableIsRateLimited TestUnreachableIsFair TestPersistentKeepaliveThenEndpoint netstack.TestDeviceUnreachable"},
	{"3 ECN both ways, DSCP of handshakes", "TestECNBothWays TestDSCPStaysInside TestHandshakeTOS TestSendECN TestStagedKeepsECN packet.TestDecapsulateECN"},
	{"4 DF clear", "udp.TestSmallMTU udp.TestSocketOptions"},
	{"5 cookies: address and port, once, no roaming", "TestMAC2BoundToAddressAndPort TestCookieReplyWithWrongMAC1Ignored TestCookieReplyMovesNothing"},
	{"6 endpoint moves only on authentic packets", "TestRoaming TestRoamingByKeepaliveAndHandshake TestEndpointUnchangedByForgedAndReplayed TestLateDataMovesEndpointBack TestLateResponseMovesEndpointBack"},
	{"7 response re-checked before commit", "TestResponseToSupersededInitiation TestCommitSession TestChangesAmidInitiation TestChangesAmidResponse TestNewerInitiationAmidResponse"},
	{"8 simultaneous initiations heal in 5 to 5.33 s", "TestCrossingInitiationsHeal TestKeypairRotation"},
	{"9 confirmation", "TestInitiatorConfirmsAtOnce TestResponderFlushesOnConfirmation TestResponderSendsOnCurrentUntilConfirmed"},
	{"10 keepalive: armed by the first data, cancelled before any send", "TestPassiveKeepalive TestPassiveKeepaliveCancelled TestNeedAnotherKeepalive TestKeepaliveCancelledBeforeTheSend"},
	{"11 data-sent timers start only if the send succeeded", "TestFailedSendIsNotUnanswered TestSendFailures TestSendTrouble"},
	{"12 ages count suspend; timestamps grow", "TestSuspend TestSuspendBoth TestWakeRings TestClockSetBack"},
	{"13 no private key: no handshake", "TestFirstPrivateKeyOnUpDevice"},
	{"14 the device's own key is not a peer", "TestOwnKeyIsNoPeer TestConfigureNewKeyIsChecked TestConfigAllErrorsAtOnce uapi.TestSetOwnKey"},
	{"15 private key change", "TestPrivateKeyChange TestPrivateKeyChangeReceivesUntil180s TestOwnKeyIsNoPeer"},
	{"16 preshared key change", "TestPresharedKeyChange TestPresharedKeyChangeAmidHandshake TestUpdateOneField"},
	{"17 allowed IPs: longest prefix, last writer, both ways", "TestNestedPrefixesOfTwoPeers TestAllowedIPsMoveWhilePacketsFlow TestAllowedIPsMoveUnderSenders TestAllowedIPsModel"},
	{"18 inner length", "TestInnerLength packet.TestUnpad"},
	{"19 reserved bytes are zero", "TestReservedBytes"},
	{"20 sticky source", "TestStickySource TestStickySourceForgotten udp.TestAnswerComesFromTheAddressReached udp.TestGoneSourceIsForgotten udp.TestAddressTakenAway"},
	{"21 zones, mapped addresses", "TestEndpointText udp.TestZones udp.TestMappedAddressGoesOutByIPv4"},
	{"22 port", "TestListenPortChange udp.TestBothFamiliesOnOnePort udp.TestPortTakenInOneFamily udp.TestPortZeroTriesUntilBothFamiliesHaveIt udp.TestMissingFamilyIsNoError"},
	{"23 low-order points, at each of four places", "TestLowOrderMessages TestLowOrderInitiator TestLowOrderPeer TestHandshakeLowOrder"},
	{"24 endpoint inside the tunnel", "TestEndpointInsideOwnTunnel TestEndpointMovesInsideOwnTunnel"},
	{"25 counters", "TestExactCounters TestExactCountersOfHandshakes TestCountersOutliveSessions"},
	{"26 up, down", "TestDownAndUpAgain TestPersistentKeepaliveMakesSession TestEveryCallInEveryState"},
	{"27 replacing peers keeps the sessions of those that stay", "TestReplacePeersKeepsSessions"},
	{"27 over the control protocol it ends them", "uapi.TestSetKeepsSession"},
	{"28 on-demand peers", "TestReplayedInitiationDoesNotBringPeerBack TestLookedUpPeerForgotten"},
	{"32 a session that may be dead", "TestHandshakeAfterEndpointChange TestHandshakeSameEndpoint TestHandshakeUnansweredData TestHandshakeRevived TestLiveSession TestRevivedSession"},
	{"32 Renew: the 5 s rule per endpoint, 4 in 5 s", "TestRenew TestRenewLimits TestRenewPutOff TestRenewJudgedAgain TestRenewAfterResponse TestRenewWithoutWaiting"},
	{"33 successor: sent timestamps above the predecessor's", "TestSentTimestampFloor"},
}

// testNames returns the names of the tests of all packages in the module, in the form that the lists above use.
func testNames(t *testing.T) map[string]bool {
	names, fset := map[string]bool{}, token.NewFileSet()
	err := filepath.WalkDir(".", func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		f, err := parser.ParseFile(fset, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		prefix := ""
		if dir := filepath.Dir(path); dir != "." {
			prefix = filepath.Base(dir) + "."
		}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && strings.HasPrefix(fn.Name.Name, "Test") {
				names[prefix+fn.Name.Name] = true
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// TestCoverageNames checks that the lists name at least one test for each behavior, and that all these tests exist.
func TestCoverageNames(t *testing.T) {
	testkit.ReadsSources(t)
	names := testNames(t)
	if !names["TestCoverageNames"] || !names["udp.TestClose"] {
		t.Fatalf("testNames found %d names, but not TestCoverageNames and udp.TestClose", len(names))
	}
	for _, list := range [][]covered{scenarios, decisions, faults} {
		seen := map[string]bool{}
		for _, c := range list {
			tests := strings.Fields(c.tests)
			if len(tests) == 0 || seen[c.what] {
				t.Errorf("%q has no test, or is listed twice", c.what)
			}
			seen[c.what] = true
			for _, name := range tests {
				if !names[name] {
					t.Errorf("%q: there is no test %s", c.what, name)
				}
			}
		}
	}
}

// TestScenariosAreListed checks that one of the lists names each test in the files *_scenarios_test.go, except in those files
// that test the API and not the protocol.
func TestScenariosAreListed(t *testing.T) {
	testkit.ReadsSources(t)
	listed := map[string]bool{}
	for _, list := range [][]covered{scenarios, decisions, faults} {
		for _, c := range list {
			for _, name := range strings.Fields(c.tests) {
				listed[name] = true
			}
		}
	}
	files, err := filepath.Glob("*_scenarios_test.go")
	if err != nil || len(files) < 10 {
		t.Fatal("want at least 10 files *_scenarios_test.go, found", files, err)
	}
	function := regexp.MustCompile(`(?m)^func (Test\w+)\(`)
	for _, file := range files {
		if subject, _, _ := strings.Cut(file, "_"); slices.Contains([]string{"events", "framing", "life", "lookup", "mtu", "stats", "waiters"}, subject) {
			continue // these tests are about the API, not about the protocol
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range function.FindAllStringSubmatch(string(text), -1) {
			if !listed[m[1]] {
				t.Errorf("%s: none of the lists names %s", file, m[1])
			}
		}
	}
}

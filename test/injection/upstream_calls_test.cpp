// Every call that a resource makes to its upstream fails, in each way that an upstream may fail: it is reported if it
// is the upstream's error, the allocation ends in bad_alloc, and everything else is as before.

#include "faulty_upstream.hpp"
#include "subjects.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstdio>
#include <initializer_list>
#include <optional>

namespace {

using namespace injection;

constexpr std::initializer_list<way> every_way{way::throws_bad_alloc, way::throws_another, way::null, way::misaligned,
                                               way::in_use};

constexpr std::initializer_list<way> all_but_in_use{way::throws_bad_alloc, way::throws_another, way::null,
                                                    way::misaligned};

// All calls from one on fail, and from the next on: much the same, and most of the time.
#ifdef TEST_ALL_POLICIES
constexpr std::uint64_t step = 1;
#else
constexpr std::uint64_t step = 4;
#endif

/// How an error of the upstream is reported.
std::optional<error_kind> kind_of(way how) {
    switch (how) {
        case way::null: return error_kind::upstream_null;
        case way::misaligned: return error_kind::upstream_misaligned;
        case way::in_use: return error_kind::upstream_overlap;
        case way::throws_bad_alloc:
        case way::throws_another: break;
    }
    return std::nullopt;
}

class upstream_calls : public ::testing::Test {
protected:
    ~upstream_calls() override { std::printf("faults injected: %llu\n", static_cast<unsigned long long>(failed)); }

    /// \p passes_on: exceptions of the upstream reach the caller as they are.
    template <class Subject, class Options>
    void run_once(const Options& o, way how, std::uint64_t first, std::uint64_t last, bool passes_on, bool reported) {
        SCOPED_TRACE(testing::Message() << "way " << static_cast<int>(how) << ", calls " << first << " to " << last);
        reports.clear();
        findings out;
        out.foreign_exceptions = passes_on && how == way::throws_another;
        auto subject = std::make_optional<Subject>(o);
        subject->upstream.how = how;
        subject->upstream.first = first;
        subject->upstream.last = last;
        {
            program work(subject->resource, out, [&subject] { return subject->resource.stats(); });
            work.run(true);
        }
        const std::uint64_t faults_made = subject->upstream.failed;
        failed += faults_made;
        const std::uint64_t errors = subject->resource.errors().total();
        const std::optional<error_kind> kind = kind_of(how);
        const std::uint64_t expected = kind.has_value() && reported ? faults_made : 0;
        EXPECT_EQ(errors, expected);
        EXPECT_EQ(reports.count(), expected);
        if (kind.has_value()) {
            EXPECT_EQ(reports.count(*kind), expected);
        }
        EXPECT_EQ(subject->resource.ok(), expected == 0);
        EXPECT_EQ(out.text, "");
        if (how != way::throws_bad_alloc && how != way::throws_another) {
            EXPECT_LE(out.refused, faults_made);  // a freed slot may do instead
        }
        EXPECT_EQ(subject->upstream.wrong_frees, 0U);
        EXPECT_EQ(subject->end(), 0U) << "blocks the upstream did not get back";
        EXPECT_EQ(subject->upstream.wrong_frees, 0U);
    }

    template <class Subject, class Options>
    void fail_everything(Options o, bool passes_on, bool reported = true, std::initializer_list<way> ways = every_way) {
        o.handler = &reports;
        std::uint64_t calls = 0;
        {
            Subject plain(o);
            findings out;
            program(plain.resource, out).run(true);
            calls = plain.upstream.calls;
        }
        ASSERT_GT(calls, 0U);
        for (const way how : ways) {
            for (std::uint64_t k = 1; k <= calls && !HasFailure(); ++k) {
                run_once<Subject>(o, how, k, k, passes_on, reported);
                if (k % step == 1 || step == 1) {
                    run_once<Subject>(o, how, k, UINT64_MAX, passes_on, reported);
                }
            }
        }
        std::printf("%llu calls\n", static_cast<unsigned long long>(calls));
    }

    collecting_handler reports;
    std::uint64_t failed = 0;
};

template <policy P>
using heap = over_faulty<basic_general_purpose_resource<P>, general_purpose_options>;
template <policy P>
using tracking = over_faulty<basic_tracking_resource<P>, tracking_options>;
template <policy P>
using canary = over_faulty<basic_canary_resource<P>, canary_options>;
template <policy P>
using fence = over_faulty<basic_end_of_page_resource<P>, end_of_page_options>;
template <policy P>
using temp = over_faulty<basic_temp_resource<P>, temp_options>;

TEST_F(upstream_calls, heap) {
    fail_everything<heap<default_policy>>(general_purpose_options{}, false);
}
TEST_F(upstream_calls, heap_single) {
    fail_everything<heap<single_policy>>(general_purpose_options{}, false);
}
TEST_F(upstream_calls, heap_fast) {
    fail_everything<heap<fast_policy>>(general_purpose_options{}, false);
}
TEST_F(upstream_calls, heap_release) {
    fail_everything<heap<release_policy>>(general_purpose_options{}, false);
}
TEST_F(upstream_calls, heap_immediate) {
    fail_everything<heap<immediate_policy>>(general_purpose_options{}, false);
}
TEST_F(upstream_calls, heap_quarantined) {
    fail_everything<heap<quarantined_policy>>(
        general_purpose_options{.quarantine_bytes = quarantine, .retired_record_bytes = records}, false);
}
TEST_F(upstream_calls, heap_thorough) {
    fail_everything<heap<thorough_policy>>(general_purpose_options{}, false);
}
TEST_F(upstream_calls, tracking) {
    fail_everything<tracking<default_policy>>(tracking_options{}, true);
}
TEST_F(upstream_calls, tracking_release) {
    fail_everything<tracking<release_policy>>(tracking_options{}, true, false,
                                              {way::throws_bad_alloc, way::throws_another, way::null});
}
TEST_F(upstream_calls, canary) {
    fail_everything<canary<default_policy>>(canary_options{.quarantine_bytes = 0}, true);
}
// That a block in quarantine was handed out by the upstream once more shows as a write after free, not as an overlap.
TEST_F(upstream_calls, canary_with_quarantine) {
    fail_everything<canary<default_policy>>(canary_options{}, true, true, all_but_in_use);
}
TEST_F(upstream_calls, canary_small_quarantine) {
    fail_everything<canary<default_policy>>(canary_options{.quarantine_bytes = quarantine}, true, true, all_but_in_use);
}
TEST_F(upstream_calls, end_of_page) {
    fail_everything<fence<default_policy>>(end_of_page_options{.quarantine_bytes = quarantine}, false);
}
TEST_F(upstream_calls, temp) {
    fail_everything<temp<default_policy>>(temp_options{}, true);
}
TEST_F(upstream_calls, temp_fast) {
    fail_everything<temp<fast_policy>>(temp_options{}, true);
}

}  // namespace

// Every call that a resource makes to its upstream fails, in each way that an upstream may fail: it is reported if it
// is the upstream's error, the allocation ends in bad_alloc, and everything else is as before.

#include "subjects.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstdio>
#include <initializer_list>
#include <map>
#include <memory_resource>
#include <new>
#include <optional>
#include <utility>

namespace {

using namespace injection;

enum class way { throws_bad_alloc, throws_another, null, misaligned, in_use };

constexpr std::initializer_list<way> every_way{way::throws_bad_alloc, way::throws_another, way::null, way::misaligned,
                                               way::in_use};

constexpr std::initializer_list<way> all_but_in_use{way::throws_bad_alloc, way::throws_another, way::null,
                                                    way::misaligned};

struct another_exception {};

class faulty_upstream final : public std::pmr::memory_resource {
public:
    way how = way::throws_bad_alloc;
    std::uint64_t first = 0;  ///< calls to allocate that fail
    std::uint64_t last = 0;
    std::uint64_t calls = 0;
    std::uint64_t failed = 0;
    std::uint64_t wrong_frees = 0;

    [[nodiscard]] std::size_t live() const { return blocks_.size(); }

private:
    void* do_allocate(std::size_t bytes, std::size_t alignment) override {
        ++calls;
        if (calls >= first && calls <= last) {
            switch (how) {
                case way::throws_bad_alloc: ++failed; throw std::bad_alloc();
                case way::throws_another: ++failed; throw another_exception();
                case way::null: ++failed; return nullptr;
                case way::misaligned:
                    if (alignment > 1) {
                        ++failed;
                        return give(bytes, alignment, alignment / 2);
                    }
                    break;
                case way::in_use:
                    // Whether a part of a block is in use not every resource can tell; the very same block each one.
                    for (const auto& [p, b] : blocks_) {
                        if (b.bytes == bytes && b.alignment == alignment) {
                            ++failed;
                            return launder(p);
                        }
                    }
                    break;
            }
        }
        return give(bytes, alignment, 0);
    }

    void do_deallocate(void* p, std::size_t bytes, std::size_t alignment) override {
        const auto at = blocks_.find(p);
        if (at == blocks_.end() || at->second.bytes != bytes || at->second.alignment != alignment) {
            ++wrong_frees;
            return;
        }
        std::pmr::new_delete_resource()->deallocate(at->second.base, bytes + alignment, alignment);
        blocks_.erase(at);
    }

    [[nodiscard]] bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override {
        return this == &other;
    }

    void* give(std::size_t bytes, std::size_t alignment, std::size_t offset) {
        auto* const base =
            static_cast<unsigned char*>(std::pmr::new_delete_resource()->allocate(bytes + alignment, alignment));
        blocks_[base + offset] = {base, bytes, alignment};
        return launder(base + offset);
    }
    // The compiler may believe that allocate returns neither null nor anything misaligned.
    [[gnu::noinline]] static void* launder(void* p) {
        asm volatile("" : "+r"(p));
        return p;
    }

    struct block {
        void* base;
        std::size_t bytes;
        std::size_t alignment;
    };
    std::map<void*, block> blocks_;
};

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
                run_once<Subject>(o, how, k, UINT64_MAX, passes_on, reported);
            }
        }
        std::printf("%llu calls\n", static_cast<unsigned long long>(calls));
    }

    collecting_handler reports;
    std::uint64_t failed = 0;
};

template <class Resource, class Options>
struct subject {
    faulty_upstream upstream;
    std::optional<Resource> made;
    Resource& resource;
    explicit subject(const Options& o) : resource(made.emplace(&upstream, o)) {}
    /// Effects: destroys the resource. Returns: blocks that the upstream misses.
    std::size_t end() {
        made.reset();
        return upstream.live();
    }
};

template <policy P>
using heap = subject<basic_general_purpose_resource<P>, general_purpose_options>;
template <policy P>
using tracking = subject<basic_tracking_resource<P>, tracking_options>;
template <policy P>
using canary = subject<basic_canary_resource<P>, canary_options>;
template <policy P>
using fence = subject<basic_end_of_page_resource<P>, end_of_page_options>;
template <policy P>
using temp = subject<basic_temp_resource<P>, temp_options>;

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

// A program out of control writes random bytes: into its blocks, past both ends of them, into freed ones, and anywhere
// else in the memory that the upstream gave. Each corruption that a check claims to see is reported, with the block and
// the first bad byte; nothing else is; the state stays intact; nothing crashes.

#include <pmr_debug/pmr_debug.hpp>

#include <gtest/gtest.h>

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory_resource>
#include <new>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace {

using namespace pmr_debug;

constexpr policy quarantined_policy{.freed = reuse::quarantined};
constexpr policy immediate_policy{.freed = reuse::immediate};

/// Kind and block; where the first damaged byte is.
using facts = std::multimap<std::pair<error_kind, const void*>, const void*>;

class recorder final : public report_handler {
public:
    facts seen;
    action handle(const report& r) noexcept override {
        seen.emplace(std::pair{r.kind, r.block.address}, r.first_bad);
        return action::carry_on;
    }
};

std::string to_text(const facts& f) {
    std::string text;
    for (const auto& [what, where] : f) {
        char line[120];
        std::snprintf(line, sizeof line, "%s of %p at %p\n", std::string(to_string(what.first)).c_str(), what.second,
                      where);
        text += line;
    }
    return text;
}

/// Hands out pieces of one range, front to back, with a gap between them, and never again. All of it may be written.
class one_range final : public std::pmr::memory_resource {
public:
    static constexpr std::size_t bytes = std::size_t{1} << 30;

    one_range()
        : base_(static_cast<unsigned char*>(
              ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0))) {}
    one_range(const one_range&) = delete;
    one_range& operator=(const one_range&) = delete;
    ~one_range() override { ::munmap(base_, bytes); }

    [[nodiscard]] unsigned char* base() const { return base_; }
    [[nodiscard]] std::size_t used() const { return used_; }

private:
    static constexpr std::size_t gap = 64;

    void* do_allocate(std::size_t n, std::size_t alignment) override {
        const std::size_t at = (used_ + gap + alignment - 1) & ~(alignment - 1);
        if (n > bytes - gap - at) {
            throw std::bad_alloc();
        }
        used_ = at + n + gap;
        return base_ + at;
    }
    void do_deallocate(void*, std::size_t, std::size_t) override {}
    [[nodiscard]] bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override {
        return this == &other;
    }

    unsigned char* base_;
    std::size_t used_ = 0;
};

/// How many bytes next to a block a resource watches, and whether it watches freed blocks.
struct watch {
    std::size_t before = 0;
    std::size_t behind = 0;
    bool to_page_end = false;  ///< and those up to the end of the block's page, both ways
    bool freed = false;

    [[nodiscard]] std::size_t before_block(const unsigned char* p) const {
        return to_page_end ? std::min<std::size_t>(before, reinterpret_cast<std::uintptr_t>(p) % 4096) : before;
    }
    [[nodiscard]] std::size_t behind_block(const unsigned char* p, std::size_t size) const {
        return to_page_end ? (0 - (reinterpret_cast<std::uintptr_t>(p) + size)) % 4096 : behind;
    }
};

template <class Resource>
struct over_range {
    one_range upstream;
    std::optional<Resource> made;
    template <class Options>
    explicit over_range(const Options& o) {
        made.emplace(&upstream, o);
    }
    [[nodiscard]] one_range* wild() { return &upstream; }
};

template <policy P>
struct over_nothing {
    std::optional<basic_end_of_page_resource<P>> made;
    explicit over_nothing(const end_of_page_options& o) { made.emplace(o); }
    [[nodiscard]] one_range* wild() { return nullptr; }
};

class rogue_writes : public ::testing::Test {
protected:
    struct block {
        unsigned char* p = nullptr;
        std::size_t size = 0;
        std::size_t alignment = 0;
    };

    void SetUp() override {
        if (const char* const s = std::getenv("PMR_DEBUG_SEED"); s != nullptr) {
            seed = std::strtoull(s, nullptr, 0);
        }
        random.seed(seed);
    }

    [[nodiscard]] static std::uint64_t wanted() {
        constexpr std::uint64_t usual = 20'000;
        constexpr std::uint64_t subjects = 8;
        const char* const s = std::getenv("PMR_DEBUG_CORRUPTIONS");
        return s != nullptr ? std::strtoull(s, nullptr, 10) / subjects : usual;
    }

    std::size_t any(std::size_t below) { return static_cast<std::size_t>(random() % below); }

    /// Effects: changes the byte at \p p, and remembers what it was.
    void write(unsigned char* p) {
        undo.try_emplace(p, *p);
        const unsigned char before = undo[p];
        do {
            *p = static_cast<unsigned char>(random());
        } while (*p == before);
        ++corruptions;
    }

    static void expect(facts& f, error_kind kind, const void* block, const void* at) {
        const auto found = f.find({kind, block});
        if (found == f.end()) {
            f.emplace(std::pair{kind, block}, at);
        } else {
            found->second = std::min(found->second, at);
        }
    }

    template <class Resource>
    void allocate(Resource& r) {
        constexpr std::size_t alignments[] = {1, 8, 8, 16, 16, 64};
        block b;
        b.size = any(20) == 0 ? 1 + any(20'000) : 1 + any(700);
        b.alignment = alignments[any(std::size(alignments))];
        b.p = static_cast<unsigned char*>(r.allocate(b.size, b.alignment));
        ASSERT_EQ(reinterpret_cast<std::uintptr_t>(b.p) % b.alignment, 0U);
        for (const block& other : live) {
            ASSERT_TRUE(b.p + b.size <= other.p || other.p + other.size <= b.p) << "overlap";
        }
        live.push_back(b);
    }

    template <class Resource>
    void free(Resource& r, std::size_t index, const watch& w) {
        const block b = live[index];
        live[index] = live.back();
        live.pop_back();
        r.deallocate(b.p, b.size, b.alignment);
        if (w.freed) {
            freed.push_back(b);
            if (freed.size() > 12) {
                freed.erase(freed.begin());
            }
        }
    }

    template <class Resource>
    void churn(Resource& r, const watch& w, std::size_t blocks) {
        for (int i = 0; i < 4 && !live.empty(); ++i) {
            free(r, any(live.size()), w);
        }
        while (live.size() < blocks) {
            ASSERT_NO_FATAL_FAILURE(allocate(r));
        }
    }

    template <class Resource>
    void expect_counts(const Resource& r) {
        std::size_t bytes = 0;
        for (const block& b : live) {
            bytes += b.size;
        }
        const statistics s = r.stats();
        ASSERT_EQ(s.live_blocks, live.size());
        ASSERT_EQ(s.live_bytes, bytes);
    }

    /// Some corruptions, which a check must find, all of them and no others; and what is freed in this state.
    template <class Resource>
    void batch(Resource& r, const watch& w) {
        facts expected;
        undo.clear();
        for (std::size_t left = 1 + any(8); left != 0; --left) {
            const std::size_t what = any(4);
            if (what == 3 && !freed.empty()) {
                const block& b = freed[any(freed.size())];
                unsigned char* const at = b.p + any(b.size);
                write(at);
                expect(expected, error_kind::write_after_free, b.p, at);
                continue;
            }
            const block& b = live[any(live.size())];
            if (const std::size_t n = w.before_block(b.p); what == 2 && n != 0) {
                unsigned char* const at = b.p - 1 - any(n);
                write(at);
                expect(expected, error_kind::underrun, b.p, at);
            } else if (const std::size_t m = w.behind_block(b.p, b.size); what != 0 && m != 0) {
                unsigned char* const at = b.p + b.size + any(m);
                write(at);
                expect(expected, error_kind::overrun, b.p, at);
            } else {
                write(b.p + any(b.size));  // its own
                undo.erase(b.p);
            }
        }
        reports.seen.clear();
        const std::size_t found = r.check();
        ASSERT_EQ(to_text(reports.seen), to_text(expected)) << "seed " << seed;
        ASSERT_EQ(found == 0, expected.empty());
        reported += expected.size();
        std::erase_if(freed, [&](const block& b) { return expected.contains({error_kind::write_after_free, b.p}); });

        // One that is freed as it is.
        if (any(4) == 0) {
            const std::size_t index = any(live.size());
            const block b = live[index];
            const bool under = expected.contains({error_kind::underrun, b.p});
            const bool over = expected.contains({error_kind::overrun, b.p});
            if ((under || over) && !repairs) {
                facts again;
                for (const error_kind kind : {error_kind::underrun, error_kind::overrun}) {
                    if (const auto at = expected.find({kind, b.p}); at != expected.end()) {
                        again.insert(*at);
                    }
                }
                reports.seen.clear();
                live[index] = live.back();
                live.pop_back();
                r.deallocate(b.p, b.size, b.alignment);
                ASSERT_EQ(to_text(reports.seen), to_text(again)) << "seed " << seed;
                reported += again.size();
                std::erase_if(undo, [&](const auto& u) {
                    return u.first >= b.p - w.before_block(b.p) && u.first < b.p + b.size + w.behind_block(b.p, b.size);
                });
            }
        }
        for (const auto& [at, value] : undo) {
            const bool of_freed = std::none_of(live.begin(), live.end(), [&, p = at](const block& b) {
                return p >= b.p - w.before_block(b.p) && p < b.p + b.size + w.behind_block(b.p, b.size);
            });
            if (!of_freed) {
                *at = value;
            }
        }
        reports.seen.clear();
        ASSERT_NO_FATAL_FAILURE(churn(r, w, 40));
        ASSERT_EQ(to_text(reports.seen), "") << "seed " << seed;
        ASSERT_NO_FATAL_FAILURE(expect_counts(r));
    }

    /// Bytes anywhere in the upstream's memory; then the resource is used on. What is reported is what was hit.
    template <class Resource>
    void run_wild(Resource& r, one_range& range, const watch& w) {
        for (std::size_t i = 0; i < 200; ++i) {
            unsigned char* const at = range.base() + any(range.used());
            const std::size_t n =
                std::min<std::size_t>(1 + any(64), range.used() - static_cast<std::size_t>(at - range.base()));
            for (std::size_t k = 0; k < n; ++k) {
                at[k] = static_cast<unsigned char>(random());
            }
            ++corruptions;
            if (i % 10 == 0) {
                ASSERT_NO_FATAL_FAILURE(churn(r, w, 40));
                ASSERT_NO_FATAL_FAILURE(expect_counts(r));
            }
        }
        r.check();
        while (!live.empty()) {
            free(r, live.size() - 1, w);
        }
        ASSERT_NO_FATAL_FAILURE(expect_counts(r));
        for (const auto& [what, where] : reports.seen) {
            ASSERT_TRUE(what.first == error_kind::overrun || what.first == error_kind::underrun ||
                        what.first == error_kind::write_after_free)
                << to_string(what.first);
        }
        reports.seen.clear();
    }

    template <class Subject, class Options>
    void corrupt(Options o, const watch& w, std::uint64_t share = 1) {
        o.handler = &reports;
        while (corruptions < wanted() / share) {
            Subject subject(o);
            auto& r = *subject.made;
            live.clear();
            freed.clear();
            ASSERT_NO_FATAL_FAILURE(churn(r, w, 40));
            for (int i = 0; i < 300 && corruptions < wanted() / share; ++i) {
                ASSERT_NO_FATAL_FAILURE(batch(r, w));
            }
            reports.seen.clear();
            if (one_range* const range = subject.wild(); range != nullptr) {
                ASSERT_NO_FATAL_FAILURE(run_wild(r, *range, w));
            }
            while (!live.empty()) {
                free(r, live.size() - 1, w);
            }
            subject.made.reset();
            for (const auto& [what, where] : reports.seen) {
                ASSERT_FALSE(is_leak(what.first)) << to_string(what.first);
            }
        }
        std::printf("seed %llu, corruptions: %llu, reported: %llu\n", static_cast<unsigned long long>(seed),
                    static_cast<unsigned long long>(corruptions), static_cast<unsigned long long>(reported));
    }

    std::uint64_t seed = std::random_device{}();
    std::mt19937_64 random;
    recorder reports;
    std::map<unsigned char*, unsigned char> undo;
    std::vector<block> live;
    std::vector<block> freed;
    std::uint64_t corruptions = 0;
    std::uint64_t reported = 0;
    bool repairs = false;  ///< a check mends what it reports
};

template <policy P>
using heap = over_range<basic_general_purpose_resource<P>>;

TEST_F(rogue_writes, heap) {
    corrupt<heap<default_policy>>(general_purpose_options{}, {.behind = 16, .freed = true});
}
TEST_F(rogue_writes, heap_quarantined) {
    corrupt<heap<quarantined_policy>>(general_purpose_options{}, {.behind = 16, .freed = true});
}
TEST_F(rogue_writes, heap_immediate) {
    corrupt<heap<immediate_policy>>(general_purpose_options{}, {.behind = 16});
}
TEST_F(rogue_writes, heap_thorough) {
    corrupt<heap<thorough_policy>>(general_purpose_options{}, {.behind = 16, .freed = true}, 4);
}
TEST_F(rogue_writes, heap_release) {
    corrupt<heap<release_policy>>(general_purpose_options{}, {});
}
TEST_F(rogue_writes, canary) {
    corrupt<over_range<canary_resource>>(canary_options{}, {.before = 16, .behind = 16, .freed = true});
}
TEST_F(rogue_writes, canary_seeded) {
    corrupt<over_range<canary_resource>>(canary_options{.fill_seed = 4711},
                                         {.before = 16, .behind = 16, .freed = true});
}
TEST_F(rogue_writes, end_of_page) {
    corrupt<over_nothing<default_policy>>(end_of_page_options{}, {.before = 256, .to_page_end = true});
}
TEST_F(rogue_writes, end_of_page_over_any) {
    corrupt<over_range<end_of_page_resource>>(end_of_page_options{},
                                              {.before = 256, .to_page_end = true, .freed = true}, 2);
}
TEST_F(rogue_writes, temp) {
    repairs = true;
    corrupt<over_range<temp_resource<>>>(temp_options{}, {.behind = 16, .freed = true});
}

}  // namespace

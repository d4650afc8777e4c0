#pragma once

// A fuzzing session on one of this library's resources: it also plants misuse of each kind, and knows what must be
// reported of it, and what the counters must say.

#include "support/expectations.hpp"

#include <pmr_debug/policy.hpp>
#include <pmr_debug/statistics.hpp>
#include <pmr_debug/testing/fuzz.hpp>
#include <pmr_debug/tracking_resource.hpp>

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace fuzz {

using pmr_debug::policy;
using pmr_debug::testing::fuzz_block;
using pmr_debug::testing::fuzz_input;
using pmr_debug::testing::fuzz_options;
using pmr_debug::testing::fuzz_program;
using pmr_debug::testing::fuzz_session;
using pmr_debug::testing::fuzz_upstream;

enum class family : std::uint8_t { general_purpose, tracking, canary, end_of_page, pages, temp, pass_through };

/// What the model must know of the resource under test.
struct knowledge {
    family is = family::tracking;
    policy rules{};
    std::size_t limit_bytes = 0;
    std::size_t limit_blocks = 0;
    std::size_t freed_records = 4096;  ///< tracking, canary
    bool own_pages = false;            ///< memory of dead blocks may become inaccessible
    bool tight = false;                ///< options that make it forget, or use addresses again
    bool before_guard = true;          ///< end_of_page
    std::size_t window = 0;            ///< end_of_page: canary bytes
    bool direct = true;                ///< the watched upstream is right below
    bool may_run_out = false;          ///< requests may be refused without anybody else refusing
};

/// The resource under test, whatever its type.
class subject {
public:
    virtual ~subject() = default;
    [[nodiscard]] virtual std::pmr::memory_resource& resource() noexcept = 0;
    [[nodiscard]] virtual pmr_debug::statistics stats() noexcept = 0;
    [[nodiscard]] virtual pmr_debug::error_counts errors() noexcept = 0;
    [[nodiscard]] virtual bool ok() noexcept = 0;
    virtual std::size_t check() noexcept { return 0; }
    virtual std::size_t report_leaks() noexcept { return 0; }
    /// canary: blocks that wait in the quarantine.
    [[nodiscard]] virtual std::size_t waiting() noexcept { return 0; }
    virtual void destroy() noexcept = 0;
};

template <class R>
class subject_of final : public subject {
public:
    template <class... Arguments>
    explicit subject_of(Arguments&&... arguments) : held_(std::in_place, std::forward<Arguments>(arguments)...) {}
    [[nodiscard]] R& get() noexcept { return *held_; }
    [[nodiscard]] std::pmr::memory_resource& resource() noexcept override { return *held_; }
    [[nodiscard]] pmr_debug::statistics stats() noexcept override { return held_->stats(); }
    [[nodiscard]] pmr_debug::error_counts errors() noexcept override { return held_->errors(); }
    [[nodiscard]] bool ok() noexcept override { return held_->ok(); }
    std::size_t check() noexcept override {
        if constexpr (requires(R & r) { r.check(); }) {
            return held_->check();
        }
        return 0;
    }
    std::size_t report_leaks() noexcept override {
        if constexpr (requires(R & r) { r.report_leaks(); }) {
            return held_->report_leaks();
        }
        return 0;
    }
    [[nodiscard]] std::size_t waiting() noexcept override {
        if constexpr (requires(R & r) { r.quarantine(); }) {
            return held_->quarantine().blocks;
        }
        return 0;
    }
    void destroy() noexcept override { held_.reset(); }

private:
    std::optional<R> held_;
};

/// Memory for a resource that stands aside: its blocks are what is handed to the wrong resource.
class static_memory final : public std::pmr::memory_resource {
    void* do_allocate(std::size_t bytes, std::size_t alignment) override;
    void do_deallocate(void*, std::size_t, std::size_t) override {}
    [[nodiscard]] bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override {
        return this == &other;
    }
    alignas(64) std::byte memory_[1024]{};
    std::size_t used_ = 0;
};

class checked_session : public fuzz_session {
public:
    /// \p stub: the upstream, if it is one that is watched. \p sink must be the resource's handler.
    checked_session(subject& s, const knowledge& k, fuzz_upstream* stub, fuzz_program& program, report_sink& sink,
                    const fuzz_options& options);

    /// Effects: frees all blocks but some, which leak, ends the resource, and compares what it says of that.
    virtual void finish(fuzz_input& in);

protected:
    /// A block that was freed.
    struct dead_block {
        std::size_t bytes = 0;
        std::size_t alignment = 1;
        std::uint64_t number = 0;
        std::uint64_t order = 0;  ///< of the free, 1-based
        unsigned alloc_thread = 0;
        unsigned free_thread = 0;
        bool damaged = false;  ///< found so: it is not looked at again
    };
    struct poke {
        std::byte* at = nullptr;
        std::uint8_t old = 0;
        std::uint8_t now = 0;
    };
    using pokes = std::vector<poke>;

    verdict expect_request(std::size_t bytes, std::size_t alignment) override;
    void expect_impossible(std::size_t bytes, std::size_t alignment) override;
    void expect_free(const fuzz_block& b, std::size_t bytes, std::size_t alignment) override;
    void granted(const fuzz_block& b) override;
    void freed(const fuzz_block& b) override;
    void settle() override;
    void plan_upstream(fuzz_input& in) override;
    void extra(fuzz_input& in) override;
    /// Operations of one resource only.
    virtual void special(fuzz_input&) {}
    /// Returns: true if the report was one that might come at any time, and its facts were right.
    virtual bool accept(const report&) { return false; }
    /// After a check().
    virtual void checked() {}

    // checked.cpp
    [[nodiscard]] expectation about(error_kind kind) const;
    [[nodiscard]] expectation about_call(error_kind kind, const void* p, std::size_t bytes,
                                         std::size_t alignment) const;
    [[nodiscard]] known_block known(const fuzz_block& b, pmr_debug::block_state state) const;
    [[nodiscard]] known_block known(const void* p, const dead_block& d) const;
    void expect(expectation e) { expected_.push_back(std::move(e)); }
    void expect_foreign(const void* p, std::size_t bytes, std::size_t alignment, bool compare = true);
    bool expect_limit(std::size_t bytes, std::size_t alignment);
    void expect_live_damage(const fuzz_block& b, bool being_freed);
    /// A report of \p kind about \p blocks live ones, if there are any.
    void expect_live(error_kind kind, std::size_t blocks, std::size_t bytes);
    void compare_counts();
    void drop_other();
    virtual void compare_statistics();
    [[nodiscard]] bool reports() const noexcept { return k_.rules.checks; }

    // misuse.cpp
    void double_free(fuzz_input& in);
    void wrong_arguments(fuzz_input& in);
    void interior_free(fuzz_input& in);
    void stray_free(fuzz_input& in);
    void wrong_resource(fuzz_input& in);
    void damage_live(fuzz_input& in);
    void heal(fuzz_input& in);
    void write_after_free(fuzz_input& in);
    void check_all();
    void leaks_now();
    void bad_alignment(fuzz_input& in);
    [[nodiscard]] std::size_t room_before(const fuzz_block& b) const;
    [[nodiscard]] std::size_t room_behind(const fuzz_block& b) const;
    [[nodiscard]] bool may_write_dead(std::uintptr_t address, const dead_block& d) const;
    [[nodiscard]] bool numbered() const noexcept {
        return k_.is == family::tracking || k_.is == family::canary || k_.is == family::pages || k_.is == family::temp;
    }
    [[nodiscard]] bool remembers_for_sure(const dead_block& d) const;
    [[nodiscard]] bool forgets_for_sure(const dead_block& d) const;
    [[nodiscard]] bool uses_addresses_once();

    subject& subject_;
    knowledge k_;
    fuzz_upstream* stub_;
    report_sink& sink_;
    std::vector<expectation> expected_;
    std::map<std::uintptr_t, dead_block> dead_;
    std::vector<std::uintptr_t> dead_order_;  // addresses, oldest first; some live again
    std::map<const void*, pokes> live_damage_;
    std::map<const void*, pokes> dead_damage_;  // not reported yet
    std::vector<const void*> quarantine_;       // canary: what waits, oldest first
    std::size_t quarantine_head_ = 0;
    std::uint64_t frees_ = 0;
    std::size_t stale_damage_ = 0;  // temp: written after a rewind, not reported yet
    std::size_t dead_bytes_ = 0;
    bool foreign_used_ = false;
    bool reused_ = false;  // the resource may have used memory again
    pmr_debug::error_counts seen_;
    std::uint32_t numbers_[2]{};  // of the two threads, as reports give them; 0: not known yet
    std::uint64_t denials_seen_ = 0;

private:
    void consume(const report& r);
    [[nodiscard]] static std::optional<known_damage> sum(const pokes& all, const std::byte* from, const std::byte* to);
    void follow_quarantine();
    void make_other();

    static_memory strange_memory_;
    std::optional<pmr_debug::tracking_resource> other_;
    void* other_block_ = nullptr;
};

}  // namespace fuzz

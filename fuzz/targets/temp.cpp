// temp_resource: with and without a buffer, with marks, rewinds, releases and overflows.

#include "support/checked.hpp"
#include "support/policies.hpp"
#include "support/target.hpp"

#include <pmr_debug/temp_resource.hpp>

#include <algorithm>
#include <list>

namespace {

using namespace fuzz;
using pmr_debug::temp_overflow;

report_sink sink;

template <policy P>
class temp_session final : public checked_session {
    using resource = pmr_debug::temp_resource<0, P>;

public:
    temp_session(subject_of<resource>& s, const knowledge& k, const pmr_debug::temp_options& o, std::byte* buffer,
                 std::size_t bytes, fuzz_upstream& stub, fuzz_program& program)
        : checked_session(s, k, &stub, program, sink,
                          {.largest = std::size_t{1} << 14, .largest_alignment = 4096, .second_thread = true}),
          arena_(s.get()),
          options_of_arena_(o),
          buffer_(buffer),
          buffer_bytes_(bytes) {
        // The constructor of the base class took a byte, by rules it did not know.
        needed_ = aligned(0, 1) + 1;
        most_needed_ = needed_;
    }

    void finish(fuzz_input& in) override {
        thread_ = 0;
        expect_all_contents();
        if (in.byte() % 2 == 0) {
            free_all();
        }
        compare_statistics();
        compare_counts();
        note("end of the arena");
        drop_marks();
        drop_other();
        if (reports()) {
            expect_gone(0, true);
        }
        const bool stale = stale_damage_ != 0;
        subject_.destroy();
        settle();
        if (!dead_damage_.empty() || (stale && stale_damage_ != 0)) {
            fail("missing report: written after free or rewind, at the latest at the end");
        }
        if (stub_->abandon() != 0) {
            fail("chunks were left with the upstream");
        }
    }

private:
    struct open_mark {
        std::optional<pmr_debug::temp_mark> mark;
        std::uint64_t allocations = 0;  // when it was made
        std::size_t needed = 0;
        bool spilled = false;
        bool voided = false;
    };

    [[nodiscard]] std::size_t aligned(std::size_t offset, std::size_t alignment) const {
        const auto at = reinterpret_cast<std::uintptr_t>(buffer_) + offset;
        return ((at + alignment - 1) & ~(alignment - 1)) - reinterpret_cast<std::uintptr_t>(buffer_);
    }

    // ---- requests
    verdict expect_request(std::size_t bytes, std::size_t alignment) override {
        expect_foreign(nullptr, bytes, alignment);
        if (!reports()) {
            return verdict::either;
        }
        then_ = aligned(needed_, alignment) + std::max<std::size_t>(bytes, 1);
        if (buffer_bytes_ == 0 || spilled_ || then_ <= buffer_bytes_) {
            return verdict::granted;
        }
        most_needed_ = std::max(most_needed_, then_);
        ++overflows_;
        if (options_of_arena_.overflow != temp_overflow::silent) {
            expectation e = about_call(error_kind::arena_overflow, nullptr, bytes, alignment);
            e.compare_limit = true;
            e.limit = buffer_bytes_;
            e.in_use = needed_;
            expect(std::move(e));
        }
        if (options_of_arena_.overflow == temp_overflow::refuse) {
            return verdict::refused;
        }
        spilled_ = true;
        return verdict::granted;
    }
    void granted(const fuzz_block& b) override {
        checked_session::granted(b);
        needed_ = then_;
        most_needed_ = std::max(most_needed_, needed_);
    }
    void expect_free(const fuzz_block& b, std::size_t bytes, std::size_t alignment) override {
        checked_session::expect_free(b, bytes, alignment);
        if (!reports() || !options_of_arena_.lifo) {
            return;
        }
        const bool newest = std::all_of(blocks_.begin(), blocks_.end(),
                                        [&](const fuzz_block& other) { return other.number <= b.number; });
        if (!newest) {
            expectation e = about_call(error_kind::out_of_order_rewind, b.p, bytes, alignment);
            e.block = known(b, pmr_debug::block_state::live);
            expect(std::move(e));
        }
    }

    // ---- marks
    void special(fuzz_input& in) override {
        thread_ = 0;  // marks belong to the thread that made them
        switch (in.byte() % 8) {
            case 0:
            case 1: make_mark(); break;
            case 2:
            case 3: end_mark(true); break;
            case 4: end_mark(false); break;
            case 5: rewind_out_of_order(in); break;
            case 6: release(); break;
            default: write_stale(in); break;
        }
    }
    void make_mark() {
        if (marks_.size() >= 8) {
            return;
        }
        note("mark");
        open_mark& m = marks_.emplace_back();
        call([&] { m.mark.emplace(arena_); });
        m.allocations = allocations_;
        m.needed = needed_;
        m.spilled = spilled_;
        settle();
    }
    /// Effects: ends the youngest mark, by its destructor or by rewinding it first.
    void end_mark(bool by_destructor) {
        if (marks_.empty()) {
            return;
        }
        open_mark& m = marks_.back();
        note(by_destructor ? "end the youngest mark" : "rewind to the youngest mark");
        const bool voided = m.voided;
        if (!voided) {
            expect_gone(m.allocations, options_of_arena_.audit_winked_out);
        } else if (!by_destructor && reports()) {
            expect(about(error_kind::out_of_order_rewind));
        }
        if (!by_destructor) {
            call([&] { arena_.rewind(*m.mark); });
        } else {
            call([&] { m.mark.reset(); });
        }
        settle();
        if (!voided) {
            went(m.allocations, m.needed, m.spilled);
        }
        m.voided = true;
        if (by_destructor) {
            marks_.pop_back();
        }
    }
    void rewind_out_of_order(fuzz_input& in) {
        if (marks_.size() < 2) {
            return;
        }
        auto m = marks_.begin();
        std::advance(m, static_cast<std::ptrdiff_t>(in.byte() % (marks_.size() - 1)));
        const bool younger_open = std::any_of(std::next(m), marks_.end(), [](const open_mark& x) { return !x.voided; });
        if (!younger_open && !m->voided) {
            return;  // then it would be in order
        }
        note("rewind to an older mark while a younger one is open, or again");
        if (reports()) {
            expect(about(error_kind::out_of_order_rewind));
        }
        call([&] { m->mark->rewind(); });
        settle();
    }
    void release() {
        note("release()");
        expect_gone(0, options_of_arena_.audit_winked_out);
        call([&] { arena_.release(); });
        settle();
        for (open_mark& m : marks_) {
            m.voided = true;
        }
        went(0, 0, false);
    }
    void drop_marks() {
        while (!marks_.empty()) {
            end_mark(true);
        }
    }

    /// What is reported when all blocks after number \p since go: damage, and, if \p audit, that they are live.
    void expect_gone(std::uint64_t since, bool audit) {
        if (!reports()) {
            return;
        }
        std::size_t count = 0;
        std::size_t bytes = 0;
        for (const fuzz_block& b : blocks_) {
            if (b.number > since) {
                expect_live_damage(b, false);
                ++count;
                bytes += b.bytes;
            }
        }
        if (audit) {
            expect_live(error_kind::live_at_destruction, count, bytes);
        }
    }
    void went(std::uint64_t since, std::size_t needed, bool spilled) {
        for (std::size_t i = blocks_.size(); i-- > 0;) {
            if (blocks_[i].number > since) {
                live_damage_.erase(blocks_[i].p);
                const auto* const p = blocks_[i].p;
                if (k_.rules.fill && p >= buffer_ && p < buffer_ + buffer_bytes_ && blocks_[i].bytes != 0) {
                    stale_ = blocks_[i].p;
                    stale_bytes_ = blocks_[i].bytes;
                }
                forget(i);
            }
        }
        for (auto i = dead_.begin(); i != dead_.end();) {
            if (i->second.number <= since) {
                ++i;
                continue;
            }
            if (dead_damage_.count(reinterpret_cast<const void*>(i->first)) != 0) {
                fail("missing report: write_after_free of a block that was rewound");
            }
            i = dead_.erase(i);
        }
        needed_ = needed;
        spilled_ = spilled;
        moved_on_ = false;
    }

    // ---- writes to what was rewound
    void write_stale(fuzz_input& in) {
        if (stale_ == nullptr || stale_damage_ != 0 || !reports()) {
            return;
        }
        std::byte* const at = stale_ + in.below(stale_bytes_);
        stale_ = nullptr;
        // Only what lies behind all blocks is looked at again: not the gaps between them.
        const auto used = [&](const std::byte* p, std::size_t bytes) {
            return p >= buffer_ && p < buffer_ + buffer_bytes_ && at < p + bytes + k_.rules.guard_bytes + 1;
        };
        if (moved_on_ ||
            std::any_of(blocks_.begin(), blocks_.end(), [&](const fuzz_block& b) { return used(b.p, b.bytes); }) ||
            std::any_of(dead_.begin(), dead_.end(), [&](const auto& d) {
                return used(reinterpret_cast<const std::byte*>(d.first), d.second.bytes);
            })) {
            return;
        }
        if (*at != std::byte{0xDD}) {
            fail("rewound memory is not filled");
        }
        note("write to what was rewound", at);
        *const_cast<volatile std::byte*>(at) = std::byte{0x5A};
        stale_at_ = at;
        stale_damage_ = 1;
    }
    bool accept(const report& r) override {
        if (stale_damage_ == 0 || r.first_bad != stale_at_ ||
            (r.kind != error_kind::use_after_free && r.kind != error_kind::write_after_free)) {
            return false;
        }
        if (r.bad_bytes != 1 || r.bad_value != 0x5A || r.expected_value != 0xDD) {
            fail("wrong facts in: " + fuzz::words(r));
        }
        stale_damage_ = 0;
        moved_on_ = true;  // the cursor may stand behind the damage now
        return true;
    }
    void checked() override {
        live_damage_.clear();  // told once, and repaired
        if (stale_damage_ != 0) {
            fail("missing report: check() did not see a write after a rewind");
        }
    }

    // ---- counters
    void compare_statistics() override {
        if (!reports()) {
            return;  // nothing is counted
        }
        checked_session::compare_statistics();
        const pmr_debug::temp_advice a = arena_.advice();
        if (a.needed_bytes != needed_ || a.most_needed != most_needed_ || a.overflows != overflows_ ||
            a.live_bytes != live_bytes_ || a.buffer_bytes != buffer_bytes_) {
            fail("advice() says needed " + std::to_string(a.needed_bytes) + ", most " + std::to_string(a.most_needed) +
                 ", overflows " + std::to_string(a.overflows) + ", live " + std::to_string(a.live_bytes) +
                 "; it is needed " + std::to_string(needed_) + ", most " + std::to_string(most_needed_) +
                 ", overflows " + std::to_string(overflows_) + ", live " + std::to_string(live_bytes_));
        }
    }

    resource& arena_;
    pmr_debug::temp_options options_of_arena_;
    std::byte* buffer_;
    std::size_t buffer_bytes_;
    std::size_t then_ = 1;
    std::size_t needed_ = 0;
    std::size_t most_needed_ = 0;
    std::uint64_t overflows_ = 0;
    bool spilled_ = false;
    std::list<open_mark> marks_;
    std::byte* stale_ = nullptr;
    std::size_t stale_bytes_ = 0;
    std::byte* stale_at_ = nullptr;
    bool moved_on_ = false;
};

template <policy P>
void run_with(fuzz_input& in) {
    alignas(64) static std::byte memory[8192];
    fuzz_program program("");
    fuzz_upstream stub(program);
    stub.keep_all(in.byte() % 2 == 0);
    const knowledge k{.is = family::temp, .rules = P};
    pmr_debug::temp_options o{.name = "subject", .handler = &sink};
    const std::size_t odd = in.byte();
    o.overflow = static_cast<temp_overflow>(odd % 3);
    o.lifo = odd % 5 == 1;
    o.audit_winked_out = odd % 7 < 2;
    o.first_chunk_bytes = odd % 11 == 1 ? 1 : 512;
    o.quarantine_bytes = odd % 13 == 1 ? 0 : odd % 13 == 2 ? 1024 : std::size_t{64} * 1024;
    o.freed_records = odd % 17 == 1 ? 0 : odd % 17 == 2 ? 3 : 1024;
    const std::size_t size = in.byte();
    const std::size_t bytes = size % 4 == 0 ? 0 : 16 + size % 4 * 1200;
    std::byte* const buffer = bytes != 0 ? memory + size / 4 % 8 : nullptr;
    program.set_heading("temp_resource, buffer of " + std::to_string(bytes) + " bytes, overflow " +
                        std::to_string(static_cast<int>(o.overflow)) + ", lifo " + std::to_string(o.lifo) + ", audit " +
                        std::to_string(o.audit_winked_out) + ", first chunk " + std::to_string(o.first_chunk_bytes) +
                        ", quarantine " + std::to_string(o.quarantine_bytes) + ", freed records " +
                        std::to_string(o.freed_records) + ", " + words(P));
    using resource = pmr_debug::temp_resource<0, P>;
    const auto use = [&](subject_of<resource>& s) {
        temp_session<P> session(s, k, o, buffer, bytes, stub, program);
        session.run(in);
        session.finish(in);
    };
    if (buffer != nullptr) {
        subject_of<resource> s(buffer, bytes, &stub, o);
        use(s);
    } else {
        subject_of<resource> s(&stub, o);
        use(s);
    }
}

void run(fuzz_input& in) {
    with_policy(in.byte(), [&]<policy P>() { run_with<P>(in); });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    fuzz_input in(data, size);
    run(in);
    return 0;
}

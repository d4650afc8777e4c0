#include "stack/rules.hpp"

#include "os/guarded.hpp"
#include "os/stack_bounds.hpp"
#include "os/start_code.hpp"
#include "os/unwind_table.hpp"
#include "stack/cfi.hpp"
#include "stack/frame_class.hpp"
#include "stack/loaded_files.hpp"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <iterator>

namespace pmr_debug::stack {

namespace {

using kind = frame_rule::kind;

constexpr std::uintptr_t smallest_page = 4096;

/// A rule's word has its frame's class as well, and the number of its file.
constexpr unsigned class_bits = 2;
static_assert(most_loaded_files == 1U << (frame_rule::free_bits - class_bits));

// ---- Code that is taken to keep frame pointers ---------------------------------------------------------------------

struct code_range {
    std::atomic<std::uintptr_t> begin{0};  ///< 0: none; written last, and taken away first
    std::atomic<std::uintptr_t> end{0};
};
struct code_ranges {
    code_range all[64];
    std::atomic<bool> any{false};
};
constinit os::guarded<code_ranges> by_frame_pointers;
const os::guard_pages by_frame_pointers_guards(by_frame_pointers);

bool keeps_frame_pointers(std::uintptr_t address) noexcept {
    return by_frame_pointers->any.load(std::memory_order_relaxed) &&
           std::any_of(std::begin(by_frame_pointers->all), std::end(by_frame_pointers->all), [&](const code_range& r) {
               const std::uintptr_t begin = r.begin.load(std::memory_order_acquire);
               return begin > 1 && begin <= address && address < r.end.load(std::memory_order_relaxed);
           });
}

constexpr frame_rule frame_pointer_rule = frame_rule::plain({.by_frame_pointer = true,
                                                             .cfa = 16,
                                                             .saved = frame_rule::frame_pointer::saved_at_cfa,
                                                             .saved_at = -16,
                                                             .return_address_at = -8});

// ---- The rules that are kept ----------------------------------------------------------------------------------------

/// A rule and its address, each in a word. They are written and read without a lock, so what is read may be of two
/// different writers: the first word is the address, mixed with the rule, which no other rule's would be.
struct kept_rule {
    std::atomic<std::uint64_t> mixed{0};
    std::atomic<std::uint64_t> rule{0};
};
constexpr unsigned rule_bits = 13;
struct rule_table {
    kept_rule all[std::size_t{1} << rule_bits];
};
constinit os::guarded<rule_table> table;
const os::guard_pages table_guards(table);

constexpr std::uint64_t mix(std::uint64_t rule) noexcept {
    const std::uint64_t h = (rule ^ 0x9E37'79B9'7F4A'7C15) * 0xD6E8'FEB8'6659'FD93;
    return h ^ h >> 32;
}

kept_rule& place_of(std::uintptr_t address) noexcept {
    return table->all[address * 0x9E37'79B9'7F4A'7C15 >> (64 - rule_bits)];
}

struct found_rule {
    frame_rule rule;
    unsigned file = 0;
    frame_class whose = frame_class::unknown;
    bool repeatable = true;
    bool unverified = false;
};

/// Effects: compiles the rule of \p address, and keeps it.
[[gnu::noinline, gnu::cold]] found_rule make_rule(std::uintptr_t address) noexcept {
    found_rule f;
    const os::unwind_table t = os::find_unwind_table(address);
    bool stays = false;
    if (t.header != nullptr) {
        f.rule = compile_rule({t.header, t.low, t.high}, address);
        stays = os::is_permanent(t);
    } else {
        // The unwinder may have been told of it: by a just-in-time compiler, or the start code of a static program.
        const void* const entry = find_entry(address);
        f.rule = entry != nullptr ? compile_rule_of(entry, address) : frame_rule(kind::no_data);
        stays = entry != nullptr && os::is_in_program(address);
    }
    f.unverified = f.rule.what() == kind::no_data && keeps_frame_pointers(address);
    if (f.unverified || (t.header == nullptr && !stays)) {
        f.rule = f.unverified ? frame_pointer_rule : f.rule;
        f.repeatable = false;
        return f;
    }
    if (!stays) {
        f.file = number_of_file(t, address);
        f.repeatable = f.file != 0;
    }
    f.whose = class_of(t, address);
    f.repeatable = f.repeatable && f.whose != frame_class::not_yet;
    if (f.repeatable) {
        const std::uint64_t bits = f.rule.bits() | static_cast<std::uint64_t>(f.whose) << frame_rule::free_bits_at |
                                   std::uint64_t{f.file} << (frame_rule::free_bits_at + class_bits);
        kept_rule& place = place_of(address);
        place.rule.store(bits, std::memory_order_relaxed);
        place.mixed.store(address ^ mix(bits), std::memory_order_relaxed);
    }
    return f;
}

[[gnu::always_inline]] inline found_rule rule_of(std::uintptr_t address) noexcept {
    const kept_rule& place = place_of(address);
    const std::uint64_t bits = place.rule.load(std::memory_order_relaxed);
    if (place.mixed.load(std::memory_order_relaxed) != (address ^ mix(bits))) [[unlikely]] {
        return make_rule(address);
    }
    const auto file = static_cast<unsigned>(bits >> (frame_rule::free_bits_at + class_bits));
    if (file != 0 && !is_still_loaded(static_cast<std::uint16_t>(file), address)) [[unlikely]] {
        return make_rule(address);
    }
    constexpr std::uint64_t classes = (1U << class_bits) - 1;
    return {frame_rule(bits), file, static_cast<frame_class>(bits >> frame_rule::free_bits_at & classes)};
}

// ---- What a trace has room for --------------------------------------------------------------------------------------

/// Counts frames of the program until there are as many as asked for.
class frame_budget {
public:
    explicit frame_budget(unsigned frames) noexcept : left_(2 * frames), program_(frames) {}

    /// Effects: counts a frame, the \p depth-th. Returns: true if it is the last that there is room for.
    [[nodiscard]] bool spend(frame_class whose, unsigned depth) noexcept {
        constexpr unsigned least = 16;  // where it is not known whose they are
        if (whose == frame_class::program) {
            left_ -= std::min(left_, 2U);
            program_ -= program_ != 0 ? 1 : 0;
        } else if (whose != frame_class::library) {
            left_ -= std::min(left_, 1U);
        }
        return program_ == 0 || (left_ == 0 && depth >= least) || depth == max_frames;
    }

private:
    unsigned left_;     ///< in halves of frames
    unsigned program_;  ///< of those that are known to be its
};

// ---- The walk -------------------------------------------------------------------------------------------------------

/// The stack that is walked: what may be read of it.
class readable {
public:
    readable(std::uintptr_t frame, os::stack_bounds own) noexcept
        : own_(frame >= own.low && frame < own.high), high_(own_ ? own.high : ~std::uintptr_t{0}), page_(frame) {}

    /// True if the word at \p address can be read, which lies above all that were read so far. On the thread's own
    /// stack all can, but for pages that the program protects in between: where \p sure is false, as a frame pointer
    /// led there, a jump is asked for.
    [[nodiscard]] bool word(std::uintptr_t address, bool sure) noexcept {
        if (address % sizeof(std::uintptr_t) != 0 || address > high_ - sizeof(std::uintptr_t)) {
            return false;
        }
        const bool near = own_ ? sure || address - page_ < smallest_page : (address ^ page_) < smallest_page;
        if (!near && !os::can_read(address)) {
            return false;
        }
        page_ = address;
        return true;
    }

private:
    bool own_;
    std::uintptr_t high_;
    std::uintptr_t page_;
};

void watch(rule_walk& w, std::uintptr_t address, std::uintptr_t value) noexcept {
    if (w.word_count == rule_walk::most_words) {
        w.repeatable = false;
        return;
    }
    w.words[w.word_count++] = {address, value};
}

void note_file(rule_walk& w, unsigned file, std::uintptr_t address) noexcept {
    if (file == 0 || std::find(w.files, w.files + w.file_count, file) != w.files + w.file_count) {
        return;
    }
    if (w.file_count == rule_walk::most_files) {
        w.repeatable = false;
        return;
    }
    w.in_files[w.file_count] = address;
    w.files[w.file_count++] = static_cast<std::uint16_t>(file);
}

[[gnu::always_inline, gnu::no_sanitize_address, gnu::no_sanitize_thread]] inline std::uintptr_t load(
    std::uintptr_t address) noexcept {
    return *reinterpret_cast<const std::uintptr_t*>(address);
}

}  // namespace

unsigned frames_within(const std::uintptr_t* frames, unsigned depth, unsigned budget) noexcept {
    frame_budget room(budget);
    for (unsigned i = 0; i < depth; ++i) {
        if (room.spend(rule_of(frames[i] - 1).whose, i + 1)) {
            return i + 1;
        }
    }
    return depth + 1;
}

// It reads words of other functions' frames, which the sanitizers would take for errors.
[[gnu::no_sanitize_address, gnu::no_sanitize_thread]] bool walk_by_rules(std::uintptr_t frame_pointer, unsigned budget,
                                                                         rule_walk& w) noexcept {
    w.depth = w.word_count = w.file_count = 0;
    w.repeatable = true;
    w.unverified = false;
#if !defined(__x86_64__)
    return false;  // elsewhere a frame's address does not tell its caller's stack pointer
#endif
    readable stack(frame_pointer, os::this_stack(frame_pointer));
    frame_budget room(budget);
    unsigned most = max_walk;
    w.kept = max_walk + 1;
    // A frame is {saved frame pointer, return address}; above that is its caller's stack pointer at the call.
    std::uintptr_t slot = frame_pointer + sizeof(std::uintptr_t);
    std::uintptr_t address = load(slot);
    std::uintptr_t saved = frame_pointer;  // where the frame pointer was saved that is now in use
    bool saved_watched = false;
    std::uintptr_t base = load(saved);
    std::uintptr_t top = frame_pointer + 2 * sizeof(std::uintptr_t);
    for (;;) {
        if (address == 0) {
            w.end = walk_end::outermost;
            return true;
        }
        watch(w, slot, address);
        w.frames[w.depth] = address;
        w.slots[w.depth] = slot;
        ++w.depth;
        if (w.depth >= most || (w.depth > w.kept && !os::is_start_code(address))) {
            w.end = walk_end::depth;
            return true;
        }
        const found_rule found = rule_of(address - 1);
        const frame_rule rule = found.rule;
        w.repeatable = w.repeatable && found.repeatable;
        w.unverified = w.unverified || found.unverified;
        note_file(w, found.file, address - 1);
        if (w.kept > max_walk && room.spend(found.whose, w.depth)) {
            w.kept = w.depth;
            most = std::min(w.depth + look_ahead, max_walk);
        }
        if (rule.what() != kind::plain) [[unlikely]] {
            const bool whole = rule.what() == kind::outermost || os::is_start_code(address);
            w.end = whole ? walk_end::outermost : walk_end::no_rules;
            w.repeatable = w.repeatable && whole;  // what is registered as keeping frame pointers may change
            return rule.what() != kind::unknown;
        }
        std::uintptr_t cfa = top + static_cast<std::uintptr_t>(rule.cfa());
        if (rule.by_frame_pointer()) {
            cfa = base + static_cast<std::uintptr_t>(rule.cfa());
            if (!saved_watched) {
                watch(w, saved, base);
                saved_watched = true;
            }
            if (rule.loaded()) {
                if (cfa < top || !stack.word(cfa, false)) {
                    return false;
                }
                const std::uintptr_t stored = load(cfa);
                watch(w, cfa, stored);
                cfa = stored;
            }
        }
        slot = cfa + static_cast<std::uintptr_t>(rule.return_address_at());
        if (slot < top || cfa <= slot || !stack.word(slot, !rule.by_frame_pointer())) [[unlikely]] {
            return false;
        }
        if (rule.saved() != frame_rule::frame_pointer::same) {
            const std::uintptr_t from = rule.saved() == frame_rule::frame_pointer::saved_at_cfa ? cfa : base;
            saved = from + static_cast<std::uintptr_t>(rule.saved_at());
            if (saved < top || saved > slot || saved % sizeof(std::uintptr_t) != 0) [[unlikely]] {
                return false;
            }
            saved_watched = false;
            base = load(saved);
        }
        address = load(slot);
        top = cfa;
    }
}

bool add_frame_pointer_code(std::uintptr_t begin, std::uintptr_t end) noexcept {
    if (begin <= 1 || end <= begin) {
        return false;
    }
    for (code_range& r : by_frame_pointers->all) {
        std::uintptr_t none = 0;
        if (r.begin.compare_exchange_strong(none, 1, std::memory_order_acq_rel)) {
            r.end.store(end, std::memory_order_relaxed);
            r.begin.store(begin, std::memory_order_release);
            by_frame_pointers->any.store(true, std::memory_order_relaxed);
            forget_rules();  // which say that there are none
            return true;
        }
    }
    return false;
}

void drop_frame_pointer_code(std::uintptr_t begin) noexcept {
    for (code_range& r : by_frame_pointers->all) {
        std::uintptr_t expected = begin;
        if (begin > 1 && r.begin.compare_exchange_strong(expected, 0, std::memory_order_acq_rel)) {
            return;
        }
    }
}

void forget_rules() noexcept {
    for (kept_rule& place : table->all) {
        place.mixed.store(0, std::memory_order_relaxed);
    }
}

}  // namespace pmr_debug::stack

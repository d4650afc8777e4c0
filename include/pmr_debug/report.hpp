#pragma once

#include <pmr_debug/detail/language.hpp>
#if PMR_DEBUG_LANGUAGE

/// \file
/// What a debug resource says when it finds an error, and who listens.
///
/// `do_deallocate` must not throw, so an error goes to a `report_handler`, which answers with an `action`. A `report`
/// is a view: making one allocates nothing, and it is valid only during the call.
///
/// \code
///   pmr_debug::collecting_handler errors;
///   pmr_debug::general_purpose_resource resource({.name = "mine", .handler = &errors});
///   …
///   assert(errors.count(pmr_debug::error_kind::double_free) == 0);
/// \endcode

#include <pmr_debug/stack_trace.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace pmr_debug {

/// Every kind of error. The comment says what `action::carry_on` does afterwards.
enum class error_kind : std::uint8_t {
    leak,                   ///< blocks never freed. Their memory goes back to the upstream; canary, tracking: it stays
    double_free,            ///< freed before. The call is ignored
    invalid_free,           ///< never allocated by any resource of this library. The call is ignored
    interior_free,          ///< points into a block, not at its start. The call is ignored
    null_free,              ///< a null pointer. The call is ignored. With size 0: harmless, no reason to abort
    wrong_resource,         ///< belongs to another resource. The call is ignored
    size_mismatch,          ///< size differs from the one allocated. Freed with the recorded size
    alignment_mismatch,     ///< alignment differs from the one allocated. Freed with the recorded alignment
    overrun,                ///< bytes behind the block were written. The block is quarantined, not used again. With
                            ///< nearest_only, or no block: memory that was never handed out was written. It is mended
    underrun,               ///< bytes before the block were written. The block is quarantined, not used again
    use_after_free,         ///< a freed block was accessed
    write_after_free,       ///< bytes of a freed block were written. The memory is quarantined, not used again
    foreign_thread,         ///< used by a second thread, or two threads at once in its upstream. It is carried out
    destroyed_resource,     ///< the resource is dead. The call is ignored; an allocation throws bad_alloc
    live_at_destruction,    ///< blocks were in use when their resource's memory went away
    bad_alignment,          ///< alignment that is no power of two. bad_alloc. A buffer aligned to less: used as it is
    upstream_null,          ///< upstream returned null. bad_alloc
    upstream_misaligned,    ///< upstream returned under-aligned memory. It is given back, bad_alloc
    upstream_overlap,       ///< upstream returned memory that is in use. bad_alloc. A buffer in use: gone without
    limit_exceeded,         ///< a limit of the options was reached. bad_alloc
    arena_overflow,         ///< a fixed buffer was too small. As the options say: chunks, or bad_alloc
    out_of_order_rewind,    ///< a mark was rewound out of order: ignored. A block freed out of order: it is freed
    default_resource_used,  ///< the default resource was used where it is forbidden
    null_upstream,          ///< a null upstream at construction. Printed, then the process ends
    cycle,                  ///< the upstream chain leads back to itself
    fault,                  ///< an access faulted, to memory that explains nothing. Reported by `fault_handler` only
};

/// How many kinds there are.
inline constexpr std::size_t error_kind_count = static_cast<std::size_t>(error_kind::fault) + 1;

/// Returns: the enumerator's name, as in `double_free`.
[[nodiscard]] std::string_view to_string(error_kind kind) noexcept;

/// True for the kinds that speak of blocks never freed: printed, but not a reason to abort by default.
[[nodiscard]] constexpr bool is_leak(error_kind kind) noexcept {
    return kind == error_kind::leak || kind == error_kind::live_at_destruction;
}

/// What to do after a report.
enum class action : std::uint8_t {
    abort,     ///< end the process with std::abort
    carry_on,  ///< go on by the rule of the kind
};

/// Who a resource is. `type` is valid for the life of the process, `name` until 4096 more resources have died.
struct resource_ref {
    std::uint64_t id = 0;   ///< 1-based, never reused; 0: none
    std::string_view name;  ///< as given in the options, cut as they say; empty if none
    std::string_view type;  ///< as in `general_purpose_resource`
    const void* address = nullptr;
    bool alive = false;
    trace_id born = trace_id::none;  ///< where it was constructed
    trace_id died = trace_id::none;  ///< where it was destroyed
    std::uint32_t died_thread = 0;   ///< number of the thread that destroyed it; 0: alive
    bool died_at_exit = false;       ///< it was destroyed at the program's exit, as objects of static storage are
};

/// How memory was accessed.
enum class access_kind : std::uint8_t { unknown, read, write, execute };

/// State of the block a report speaks of.
enum class block_state : std::uint8_t { unknown, live, freed };

/// Whose end the reporting thread was busy with, as its call path shows.
enum class program_phase : std::uint8_t {
    running,     ///< none that shows
    exit,        ///< the program's, after main or in a call of exit: destructors of static objects, functions of atexit
    thread_end,  ///< the thread's: destructors of its thread_local objects, or of pthread keys
};

/// What is recorded of a block.
struct block_info {
    const void* address = nullptr;  ///< null: no block is known
    std::size_t size = 0;           ///< as requested, bytes
    std::size_t alignment = 0;      ///< as requested, bytes
    std::uint64_t serial = 0;       ///< number of the block in its resource, 1-based; 0 if not kept
    block_state state = block_state::unknown;
    std::uint32_t alloc_thread = 0;  ///< this library's thread number, 1-based; 0 if not kept
    std::uint32_t free_thread = 0;   ///< as above
    bool late_alloc_thread = false;  ///< not kept, but late_threads or above
    bool late_free_thread = false;   ///< as above
    /// Blocks that a resource had at this address, this one included, where freed memory was used again within a unit
    /// that lives (general_purpose_resource): this is the last of them. A call with a pointer to an earlier one cannot
    /// be told from a call with this one's.
    std::uint32_t owners = 1;
};

/// Numbers of threads from this on are not kept in records that have no room for them (`general_purpose_resource`).
inline constexpr std::uint32_t late_threads = 65'535;

/// Leaked blocks of one call path.
struct leak_group {
    trace_id allocated = trace_id::none;
    std::size_t blocks = 0;
    std::size_t bytes = 0;          ///< requested bytes
    const void* example = nullptr;  ///< one of the blocks: the one with the lowest serial number
    std::size_t example_size = 0;   ///< its size
};

/// One finding. A view: valid only while the handler runs. Members that do not apply keep their defaults.
struct report {
    error_kind kind = error_kind::leak;
    resource_ref resource;          ///< whose member was called
    resource_ref owner;             ///< whose block it is, where that is another resource
    const void* pointer = nullptr;  ///< the address handed in
    block_info block;               ///< the block concerned, or the nearest one
    bool nearest_only = false;      ///< `block` does not hold `pointer`, it is only the nearest one
    bool has_given = false;         ///< given_size and given_alignment apply
    std::size_t given_size = 0;
    std::size_t given_alignment = 0;
    const void* first_bad = nullptr;  ///< first damaged byte; null if none
    std::size_t bad_bytes = 0;        ///< damaged bytes found in the guard or the fill
    std::uint8_t bad_value = 0;       ///< what stands at `first_bad`
    std::uint8_t expected_value = 0;  ///< what should
    std::uint32_t thread = 0;         ///< number of the reporting thread
    /// foreign_thread: the thread the resource is bound to, or that is in the upstream (`owner`, by its type).
    std::uint32_t other_thread = 0;
    program_phase phase = program_phase::running;
    std::uint32_t other_threads = 0;             ///< phase exit: how many others have used a resource and still run
    std::size_t limit = 0;                       ///< limit_exceeded, arena_overflow: the limit, bytes or blocks
    std::size_t in_use = 0;                      ///< limit_exceeded, arena_overflow: what was in use
    trace_id here = trace_id::none;              ///< where the error was noticed
    trace_id allocated = trace_id::none;         ///< where `block` was allocated
    trace_id freed = trace_id::none;             ///< where `block` was (first) freed
    trace_id former_allocated = trace_id::none;  ///< where the block before, at the same address, was allocated
    trace_id former_freed = trace_id::none;      ///< and freed
    /// foreign_thread: a use by the bound thread. Damage: where the block was allocated that covers `first_bad`
    trace_id other = trace_id::none;
    block_info covering;  ///< damage: another live block, of `owner` or of `resource`, that covers `first_bad`
    std::span<const leak_group> leaks;  ///< leaks by call path, most bytes first; without those of `listed_blocks`
    std::size_t leaked_blocks = 0;      ///< all that the resource has, also those of `listed_blocks`
    std::size_t leaked_bytes = 0;       ///< theirs, as requested from the resource
    /// Of those: blocks that a resource which stands on this one has listed before, in a report of its own.
    std::size_t listed_blocks = 0;
    std::size_t listed_bytes = 0;  ///< theirs, as requested from the resource
    resource_ref listed_by;        ///< that resource, alive or not; id 0 if there are none, or it is not known any more
    bool listed_by_others = false;              ///< not all by `listed_by`, but by others above, too
    bool faulted = false;                       ///< found by a fault, at the instruction that accessed `pointer`
    access_kind access = access_kind::unknown;  ///< faulted: how
    std::string_view fault_cause;               ///< fault: what `pointer` is, as in "a null pointer"
    std::string_view hint;  ///< what to look for, one sentence; empty: the kind's own hint is printed
};

/// Receives reports. Implementations must be safe to call from any thread.
class report_handler {
public:
    report_handler() = default;
    report_handler(const report_handler&) = delete;
    report_handler& operator=(const report_handler&) = delete;
    virtual ~report_handler();

    /// Effects: takes note of \p r. Returns: what to do next.
    /// Called without any lock of the resource held; must not throw; should not allocate from the reporting resource.
    /// Called on a stack of the library's with at least 128 KiB left, as the program's may be a small thread's or a
    /// fiber's; under AddressSanitizer and ThreadSanitizer on the caller's. Must return, and not jump out.
    virtual action handle(const report& r) noexcept = 0;
};

/// How much a text report shows.
struct text_options {
    bool colour = false;               ///< ANSI colours
    std::size_t max_leak_groups = 10;  ///< then "… and N more"
    std::size_t max_frames = 32;       ///< frames printed per trace
    bool standard_internals = false;   ///< print the standard library's internal functions, too
};

/// Receives finished text in pieces. \p text is not NUL-terminated.
using text_sink = void (*)(std::string_view text, void* context) noexcept;

/// Effects: writes \p r as text for people: headline, facts, traces, hint. Thread safety: any thread.
void write_text(const report& r, const text_options& options, text_sink sink, void* context) noexcept;

/// Effects: writes \p r as one line of JSON, ended by a newline. Thread safety: any thread.
void write_json(const report& r, text_sink sink, void* context) noexcept;

namespace detail {

/// A descriptor, and which file it was open to at construction: its number may be used again for another one.
struct output_target {
    int descriptor = -1;
    std::uint64_t device = 0;
    std::uint64_t inode = 0;
    bool known = false;
};

}  // namespace detail

/// Prints text to a file descriptor; aborts on errors, carries on after leaks (see the options) and after the
/// deallocation of a null pointer with size 0, which is harmless.
///
/// Where it carries on, an error of the same kind and call paths, in a resource of the same name, is printed once. How
/// often it came again is printed at the end: of the handler, or of the process, or before an abort. 512 different ones
/// are remembered for all handlers together.
class text_handler final : public report_handler {
public:
    struct options {
        int descriptor = 2;          ///< where to write; standard error
        bool abort_on_error = true;  ///< abort after any kind that is not a leak
        bool abort_on_leak = false;  ///< abort after leaks too
        enum class colour_mode : std::uint8_t { automatic, always, never } colour = colour_mode::automatic;
        std::size_t max_leak_groups = 10;
        std::size_t max_frames = 32;
    };
    text_handler() noexcept;
    explicit text_handler(const options& o) noexcept;
    /// Effects: prints what came again.
    ~text_handler() override;
    action handle(const report& r) noexcept override;

private:
    options options_;
    detail::output_target to_;
};

/// Writes each report as one line of JSON to a file descriptor, with one `write` a report. By default carries on. What
/// comes again is counted, as by `text_handler`, and told in a last object, of the kind "repeated".
class json_handler final : public report_handler {
public:
    explicit json_handler(int descriptor, action after_error = action::carry_on) noexcept;
    /// Effects: writes what came again.
    ~json_handler() override;
    action handle(const report& r) noexcept override;

private:
    detail::output_target to_;
    action after_error_;
};

/// The handler used where the options name none: `text_handler{}` unless replaced.
/// Thread safety: any thread.
[[nodiscard]] report_handler& default_report_handler() noexcept;

/// Effects: makes \p handler the default one; null restores the shipped one. Returns: the previous one.
/// Preconditions: \p handler outlives every resource that uses it.
report_handler& set_default_report_handler(report_handler* handler) noexcept;

}  // namespace pmr_debug

#endif  // PMR_DEBUG_LANGUAGE

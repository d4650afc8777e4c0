// general_purpose_resource over a watched upstream or over pages, under each policy and with odd options.

#include "support/odd_options.hpp"
#include "support/policies.hpp"
#include "support/target.hpp"

#include <pmr_debug/general_purpose_resource.hpp>
#include <pmr_debug/page_resource.hpp>

namespace {

using namespace fuzz;

report_sink sink;

void run(fuzz_input& in) {
    with_policy(in.byte(), [&]<policy P>() {
        fuzz_program program("");
        fuzz_upstream stub(program);
        std::optional<pmr_debug::page_resource> pages;
        const std::size_t how = in.byte();
        knowledge k{.is = family::general_purpose, .rules = P, .own_pages = how % 4 == 0};
        stub.keep_all(how % 4 == 1);
        if (k.own_pages) {
            pages.emplace();
        }
        pmr_debug::general_purpose_options o{.name = "subject", .handler = &sink};
        set_odd_options(in, {.quarantine = 1024, .least_addresses = 1 << 18, .addresses = 1 << 14}, o, k);
        std::pmr::memory_resource* const upstream =
            k.own_pages ? static_cast<std::pmr::memory_resource*>(&*pages) : &stub;
        program.set_heading(
            "general_purpose_resource over " + std::string(k.own_pages ? "page_resource" : "a watched upstream") +
            ", " + words(P) + ", limits " + std::to_string(o.limit_bytes) + " and " + std::to_string(o.limit_blocks) +
            ", quarantine " + std::to_string(o.quarantine_bytes) + ", records " +
            std::to_string(o.retired_record_bytes) + ", address space " + std::to_string(o.address_space_bytes));
        using resource = pmr_debug::basic_general_purpose_resource<P>;
        subject_of<resource> s(upstream, o);
        checked_session session(
            s, k, k.own_pages ? nullptr : &stub, program, sink,
            {.largest = std::size_t{1} << 17, .largest_alignment = std::size_t{1} << 14, .second_thread = true});
        session.run(in);
        session.finish(in);
    });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    fuzz_input in(data, size);
    run(in);
    return 0;
}

// A picture through an exported K-Net in OpenVINO: a map of ids as a PNG, and a table.
//
//     knet_segment MODEL PICTURE IDS.png [LEAST SCORE]
//
// MODEL is what `knet export` wrote, .onnx or .xml; it says itself how it wants the picture. The ids
// in the PNG are R + 256 G + 65536 B: of panoptic segments or instances, 0 for none; of a semantic
// model those of the classes.

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <openvino/openvino.hpp>
#include <sstream>

#include "picture.h"

using nlohmann::json;

struct Segment {
  int64_t class_id;
  float score;
};

struct Result {
  std::vector<int32_t> ids;
  std::map<int32_t, Segment> segments;
};

json description(const ov::Model& model, const std::string& path) {
  // OpenVINO keeps the properties of an ONNX file under "framework"
  for (std::vector<std::string> place : {std::vector<std::string>{"framework", "knet"}, {"knet"}})
    if (model.has_rt_info(place)) return json::parse(model.get_rt_info<std::string>(place));
  throw std::runtime_error(path + " was not written by knet export: it does not say what it is");
}

// Height and width to feed: the shorter side as trained, the longer one bounded.
std::pair<int, int> input_size(const json& input, int height, int width) {
  const double short_side = input["resize"]["short_side"];
  const double longest = input["resize"]["max_long_side"];
  double size[2] = {double(height), double(width)};
  if (short_side > 0) {
    const double least = std::min(height, width);
    for (double& side : size) side = side == least ? short_side : side * (short_side / least);
    const double most = std::max(size[0], size[1]);
    if (most > longest)
      for (double& side : size) side *= longest / most;
  }
  const std::pair<int, int> found(int(size[0] + 0.5), int(size[1] + 0.5));
  const int least = input["least_size"];
  if (std::min(found.first, found.second) < least)
    throw std::runtime_error("the picture is too narrow: the model takes sides of " +
                             std::to_string(least) + " pixels or more");
  return found;
}

void feed(ov::InferRequest& request, const json& input, const Picture& rgb) {
  const size_t height = rgb.height, width = rgb.width;
  if (input["name"] == "picture") {  // it resizes by itself
    ov::Tensor picture(ov::element::u8, {height, width, 3});
    std::copy(rgb.pixels.begin(), rgb.pixels.end(), picture.data<uint8_t>());
    request.set_tensor("picture", picture);
    return;
  }
  if (input["contrast_cutoff"] > 0)
    throw std::runtime_error("the model wants its contrast spread (INPUT.CONTRAST_CUTOFF), which "
                             "this program does not do");
  const auto [h, w] = input_size(input, rgb.height, rgb.width);
  const Picture sized = resize(input["channel_order"] == "L" ? to_grey(rgb) : rgb, h, w);
  const size_t channels = sized.channels, area = size_t(h) * w;
  std::vector<uint8_t> planes(sized.pixels.size());
  for (size_t k = 0; k < planes.size(); ++k)
    planes[k % channels * area + k / channels] = sized.pixels[k];
  const bool floats = input["dtype"] == "float32";
  ov::Tensor image(floats ? ov::element::f32 : ov::element::u8,
                   {1, channels, size_t(h), size_t(w)});
  if (floats)
    std::copy(planes.begin(), planes.end(), image.data<float>());
  else
    std::copy(planes.begin(), planes.end(), image.data<uint8_t>());
  ov::Tensor output_size(ov::element::i64, {2});
  output_size.data<int64_t>()[0] = height;
  output_size.data<int64_t>()[1] = width;
  request.set_tensor("image", image);
  request.set_tensor("output_size", output_size);
}

// The richest result that the model gives.
Result read(ov::InferRequest& request, const json& results, size_t pixels, float least_score) {
  auto gives = [&](const char* name) {
    return std::find(results.begin(), results.end(), name) != results.end();
  };
  Result found;
  if (gives("panoptic")) {
    const int32_t* ids = request.get_tensor("panoptic_ids").data<int32_t>();
    found.ids.assign(ids, ids + pixels);
    const ov::Tensor numbers = request.get_tensor("segment_ids");
    for (size_t k = 0; k < numbers.get_size(); ++k)
      found.segments[numbers.data<int32_t>()[k]] = {
          request.get_tensor("segment_classes").data<int64_t>()[k],
          request.get_tensor("segment_scores").data<float>()[k]};
  } else if (gives("instance")) {
    found.ids.resize(pixels);
    const ov::Tensor scores = request.get_tensor("instance_scores");
    const char* masks = static_cast<const char*>(request.get_tensor("instance_masks").data());
    for (size_t k = 0; k < scores.get_size(); ++k) {
      const float score = scores.data<float>()[k];
      if (score < least_score) continue;
      const int32_t id = int32_t(found.segments.size()) + 1;
      found.segments[id] = {request.get_tensor("instance_classes").data<int64_t>()[k], score};
      for (size_t p = 0; p < pixels; ++p)  // the best first, on top
        if (masks[k * pixels + p] && !found.ids[p]) found.ids[p] = id;
    }
  } else if (gives("semantic")) {
    const int32_t* ids = request.get_tensor("semantic_classes").data<int32_t>();
    const float* scores = request.get_tensor("semantic_scores").data<float>();
    found.ids.assign(ids, ids + pixels);
    std::map<int32_t, std::pair<double, int64_t>> sums;
    for (size_t p = 0; p < pixels; ++p) sums[ids[p]].first += scores[p], ++sums[ids[p]].second;
    for (const auto& [id, sum] : sums)
      found.segments[id] = {id, float(sum.first / double(sum.second))};
  } else {
    throw std::runtime_error("the model gives raw logits: export it without --raw");
  }
  return found;
}

void print_table(const Result& found, const json& classes, int width) {
  struct Box {
    int64_t area = 0;
    int x0 = 1 << 30, y0 = 1 << 30, x1 = 0, y1 = 0;
  };
  std::map<int32_t, Box> boxes;
  for (size_t p = 0; p < found.ids.size(); ++p) {
    Box& box = boxes[found.ids[p]];
    const int x = int(p % width), y = int(p / width);
    ++box.area;
    box.x0 = std::min(box.x0, x), box.y0 = std::min(box.y0, y);
    box.x1 = std::max(box.x1, x + 1), box.y1 = std::max(box.y1, y + 1);
  }
  std::map<int64_t, std::string> names;
  for (const json& one : classes) names[one["id"]] = one["name"];
  std::cout << "id\tclass\tscore\tarea\tx\ty\twidth\theight\n";
  for (const auto& [id, segment] : found.segments) {
    const Box& box = boxes[id];
    if (!box.area) continue;  // hidden by better ones
    std::cout << id << '\t' << names[segment.class_id] << '\t' << segment.score << '\t' << box.area
              << '\t' << box.x0 << '\t' << box.y0 << '\t' << box.x1 - box.x0 << '\t'
              << box.y1 - box.y0 << '\n';
  }
}

int main(int count, char** words) try {
  if (count != 4 && count != 5)
    throw std::runtime_error("usage: knet_segment MODEL PICTURE IDS.png [LEAST SCORE]");
  const std::string path = words[1];
  if (!std::ifstream(path)) throw std::runtime_error(path + ": there is no such file");
  const Picture picture = read_picture(words[2]);
  ov::Core core;
  const auto model = core.read_model(path);
  const json info = description(*model, path);
  // of itself it rounds to 16 bits where the processor is faster with them
  ov::AnyMap options;
  if (info["precision"] != "float16")
    options.insert(ov::hint::inference_precision(ov::element::f32));
  auto compiled = core.compile_model(model, "CPU", options);
  ov::InferRequest request = compiled.create_infer_request();
  feed(request, info["input"], picture);
  request.infer();
  const float least_score = count == 5 ? std::strtof(words[4], nullptr) : 0.3f;
  const size_t pixels = size_t(picture.height) * picture.width;
  const Result found = read(request, info["results"], pixels, least_score);
  write_ids(words[3], found.ids, picture.height, picture.width);
  print_table(found, info["classes"], picture.width);
  return 0;
} catch (const std::exception& error) {
  std::istringstream text(error.what());  // OpenVINO's have several lines
  std::cerr << "knet_segment: error:";
  for (std::string word; text >> word;) std::cerr << ' ' << word;
  std::cerr << '\n';
  return 2;
}

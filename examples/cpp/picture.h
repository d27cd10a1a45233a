// Pictures: JPEG and PNG files in, PNG files out, and the resize that models were trained with.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

struct Picture {
  int height = 0, width = 0, channels = 3;
  std::vector<uint8_t> pixels;  // row by row, the channels of a pixel side by side
};

// RGB, turned upright as the EXIF tag says; std::runtime_error names the file.
Picture read_picture(const std::string& path);

// One grey channel, as Pillow's convert("L").
Picture to_grey(const Picture& rgb);

// As Pillow's bilinear resize: triangles as wide as what they reduce, whole numbers in between.
Picture resize(const Picture& picture, int height, int width);

// Ids as colours, R + 256 G + 65536 B: COCO's panoptic PNG.
void write_ids(const std::string& path, const std::vector<int32_t>& ids, int height, int width);
